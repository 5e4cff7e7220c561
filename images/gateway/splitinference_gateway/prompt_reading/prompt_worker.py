"""The process that reads requests for the gateway: JSON, chat template, tokenizer. Started by `prompts`, as a program.

It loads the tokenizer once and then only forks: each child reads one request after the other, within limits that the kernel enforces
(processor time, wall time, memory). A child that meets one ends, and the next is forked in milliseconds. Nothing a request or a template
does can hold up the gateway's event loop, or take more memory than a child may have.
"""

import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.prompt_reading.frames import HEAD, lengths, packed
from splitinference_gateway.prompt_reading.reading import Reader
from splitinference_gateway.prompt_reading.texts import TextReader
from splitinference_gateway.tensor_io.kserve_body import parse_infer
from splitinference_gateway.tensor_io.signature import Kind, Signature
from splitinference_gateway.tokens.chat_template import ChatTemplate, TemplateError
from splitinference_gateway.tokens.guides import Guides
from splitinference_gateway.tokens.positions import vocabulary
from splitinference_gateway.tokens.tokenizer import ModelTokenizer

WALL_FACTOR = 6.0  # wall time of a request over its processor time, on a machine whose cores are taken by others
_FRESH_AFTER_BYTES = 128 << 10  # a child that read so large a body holds on to memory: the next request gets a fresh one
_TEMPLATE_SECONDS = 5.0
_MOST_FILES = 16


def main(arguments: list[str]) -> int:
    """Load, then fork a child for each socket that comes, until the gateway is gone. `arguments`: a descriptor, and settings as JSON."""
    control = socket.socket(fileno=int(arguments[0]))
    settings = json.loads(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the whole group; the gateway decides when we end
    reader = _reader(settings)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    gc.collect()
    gc.freeze()
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return 0
        if os.fork() == 0:
            control.close()
            _serve(socket.socket(fileno=descriptors[0]), reader, settings)
            os._exit(0)
        os.close(descriptors[0])


def _reader(settings: dict[str, Any]) -> TextReader | None:
    """None for a model without tokens."""
    if settings["tokenizer"] is None:
        return None
    signature = Signature.read(Path(settings["tokenizer"]))
    tokenizer = ModelTokenizer(Path(settings["tokenizer"]))
    reader = Reader(
        model=settings["model"],
        context_tokens=settings["context_tokens"],
        most_sequences=settings["most_sequences"],
        tokenizer=tokenizer,
        template=_template(tokenizer, settings["memory_bytes"]),
        longest_token=max(1, tokenizer.longest_token()),
        vocabulary=vocabulary(Path(settings["tokenizer"])),
        defaults=tokenizer.defaults if settings["defaults"] else {},
        cut=settings["cut"],
        refuse_unknown=settings["refuse_unknown"],
        guides=Guides(tokenizer) if tokenizer.end_tokens and signature.kind is Kind.DECODER else None,
    )
    embeds = signature.of_texts if signature.sentence.pooling is not None else None
    return TextReader(reader, signature.sentence, width=embeds.shape[-1] if embeds is not None else 0)


def _template(tokenizer: ModelTokenizer, memory_bytes: int) -> ChatTemplate | None:
    """Compiling runs what the template computes of constants: a child tries first."""
    if tokenizer.template is None:
        return None
    child = os.fork()
    if child == 0:
        _limit(memory_bytes)
        signal.setitimer(signal.ITIMER_PROF, _TEMPLATE_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, _TEMPLATE_SECONDS * WALL_FACTOR)
        try:
            ChatTemplate(tokenizer.template, tokenizer.special)
        except TemplateError as error:
            print(f"chat requests will be refused: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except BaseException as error:  # noqa: BLE001 - said, and the child ends
            print(f"chat requests will be refused: the chat template: {error!r:.200}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        return None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_held_bytes() + memory_bytes, before[1]))  # as the child had it
    try:
        return ChatTemplate(tokenizer.template, tokenizer.special)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _limit(memory_bytes: int) -> None:
    """What this process may have from now on. Core files, files, and other processes: none."""
    limits = {
        resource.RLIMIT_DATA: _held_bytes() + memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: _MOST_FILES,
    }
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def _held_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmData:")), 0)


def _serve(peer: socket.socket, reader: TextReader | None, settings: dict[str, Any]) -> None:
    for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)  # the process ends, also in the middle of a library's call
    _limit(settings["memory_bytes"])
    seconds = float(settings["seconds"])
    while (start := _exactly(peer, HEAD.size)) is not None:
        head_bytes, body_bytes = lengths(start)
        asked, body = json.loads(_exactly(peer, head_bytes) or b"{}"), _exactly(peer, body_bytes) or b""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * WALL_FACTOR)
        told, fresh = _answer(asked, body, reader, lambda phase: peer.sendall(packed({"phase": phase})))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        fresh = fresh or len(body) > _FRESH_AFTER_BYTES
        told[0]["fresh"] = fresh
        peer.sendall(packed(*told))
        if fresh:
            return


def _answer(
    asked: dict[str, Any], body: bytes, reader: TextReader | None, phase: Callable[[str], None]
) -> tuple[tuple[dict[str, Any], bytes], bool]:
    """The answer's frame, and whether this process has had enough."""
    try:
        if asked["kind"] == "infer":
            fields, tail = parse_infer(body, asked.get("header_length")).as_frame()
        else:
            if reader is None:
                raise invalid("This model does not read text.", "model")
            current = replace(reader.reader, phase=phase, adapters=asked.get("adapters", ()))
            match asked["kind"]:
                case "embedding" | "score" | "rerank" as kind:
                    fields, tail = getattr(replace(reader, reader=current), kind)(body).as_frame()
                case "tokenize":
                    fields, tail = current.tokenize(body), b""
                case "detokenize":
                    fields, tail = current.detokenize(body), b""
                case "chat":
                    fields, tail = current.chat(body).as_frame()
                case "response":
                    fields, tail = current.response(body).as_frame()
                case _:
                    fields, tail = current.completion(body).as_frame()
    except ApiError as error:
        return ({"error": {**error.__dict__}}, b""), False
    except MemoryError:
        return ({"limit": "memory"}, b""), True
    except Exception as error:  # noqa: BLE001 - a body or a template did something that nobody thought of: told to the log, not to clients
        return ({"unexpected": f"{type(error).__name__}: {error!s:.200}"}, b""), True
    return ({"read": fields}, tail), False


def _exactly(peer: socket.socket, size: int) -> bytes | None:
    """None when the gateway is gone."""
    data = bytearray()
    while len(data) < size:
        piece = peer.recv(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
