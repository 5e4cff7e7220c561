"""What a segment checks before a request waits with others: sizes of frames, token ids, drafts."""

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.errors import BAD_REQUEST, SegmentError
from splitinference_protocol.wire.frames import MOST_ANSWER
from splitinference_protocol.wire.request import Request
from splitinference_segment.engine import Values
from splitinference_segment.peers.wire_server import Bounds
from splitinference_segment.settings import DTYPE_BYTES, Settings

LEAST_FRAME = 64 << 10


META_PER_TOKEN = 6  # of the longest context: names of blocks, and ids and counts of tokens so far


MOST_OUTPUTS = 512 << 20


def bounds_of(settings: Settings, hidden: int) -> Bounds:
    """What a peer may send at most: a step of the most tokens that are taken at once, and META with the names of all its blocks."""
    tokens = min(settings.max_step_tokens, settings.max_context_tokens)
    data = LEAST_FRAME + tokens * max(hidden * DTYPE_BYTES[settings.dtype], 2 * 8)  # int64: ids, and types of an encoder
    return bounds(settings, data)


def bounds(settings: Settings, data: int) -> Bounds:
    """The same with so many bytes of DATA."""
    return Bounds(meta=LEAST_FRAME + META_PER_TOKEN * settings.max_context_tokens, data=data, input=max(4 * data, 64 << 20))


def check_sampling(request: Request, vocabulary: int) -> None:
    """Raise SegmentError `bad_request` for token ids that the model does not have: before the step waits with others."""
    try:
        if request.sample:
            request.sampling.check(vocabulary)
        if request.targets:
            targets, tokens = leb128.numbers(request.targets), request.tensor.tokens if request.tensor else 0
            if len(targets) > tokens:
                raise ValueError(f"targets: {len(targets)} tokens follow on {tokens}")
            if (wrong := next((token for token in targets if token >= vocabulary), None)) is not None:
                raise ValueError(f"targets: token id {wrong} is not in the model's vocabulary of {vocabulary}")
    except ValueError as error:
        raise SegmentError(BAD_REQUEST, str(error)) from None


def check_drafts(request: Request, ids: Values | None) -> None:
    """Raise SegmentError `bad_request` for drafts that cannot be of this step, or are not the last of its token ids (first segment)."""
    if not (drafts := request.drafts):
        return
    tokens = request.tensor.tokens if request.tensor else 0
    if not request.sample or request.logits or request.targets:
        raise SegmentError(BAD_REQUEST, "a step with drafts samples: it gives neither logits nor scores of given tokens")
    if len(drafts) >= tokens:
        raise SegmentError(BAD_REQUEST, f"{len(drafts)} drafts need a token before them, the step has {tokens} tokens")
    if ids is not None and ids[-len(drafts) :].tolist() != list(drafts):
        raise SegmentError(BAD_REQUEST, "the drafts are not the step's last tokens")


def most_answer(request: Request) -> int:
    """Bytes of DATA that the answer to a request can have: outputs of a model, or next to nothing."""
    return MOST_OUTPUTS if request.logits or request.op == "infer" else MOST_ANSWER
