"""What a model's folder says of embeddings of texts: the files that sentence-transformers writes beside an encoder.

`modules.json` lists what runs after the transformer. Served are pooling (`1_Pooling/config.json`) and normalization.
A model without the file does not say how its hidden states become one vector, and a guess could be wrong silently: it gives none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from splitinference_protocol.wire.pooling import POOLING, Pooling

_FILE = "modules.json"
_LEGACY: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Former fields of the pooling's configuration, in the order in which several are put together."""
_MOST_BYTES = 1 << 20


class _RefusedError(Exception):
    """Why the model gives no embeddings."""


@dataclass(frozen=True)
class Sentence:
    """How texts become embeddings. `pooling` is None where they do not; `refused` says why.

    `most_tokens`: of one text, where the files limit it. `prefix` stands before each text. `sizes`: shorter embeddings that the model was
    trained for (Matryoshka; Kusupati et al., 2022), None where it was for every size.
    """

    pooling: Pooling | None = None
    refused: str = ""
    most_tokens: int | None = None
    lower: bool = False
    prefix: str = ""
    sizes: tuple[int, ...] | None = ()

    @classmethod
    def read(cls, folder: Path) -> "Sentence":
        """Of the model in `folder`. What is wrong is told in `refused`: the model's tensors are served all the same."""
        try:
            return _read(folder)
        except _RefusedError as why:
            return cls(refused=str(why))

    def allows(self, size: int, width: int) -> bool:
        """Whether embeddings of `width` numbers may be cut to `size`."""
        return 1 <= size <= width and (size == width or self.sizes is None or size in self.sizes)


def _read(folder: Path) -> Sentence:
    if not (folder / _FILE).is_file():
        raise _RefusedError(f"its folder has no {_FILE}, the file of sentence-transformers that says how tokens become one vector")
    modules = _json(folder / _FILE)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise _RefusedError(f"{_FILE} is not a list of modules")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _RefusedError(f"{_FILE} lists {', '.join(kinds) or 'nothing'}; served are Transformer, Pooling and then perhaps Normalize")
    config = _object(folder / _below(modules[1].get("path")) / "config.json")
    whole = _object(folder / "config.json", optional=True)
    transformer = _object(folder / "sentence_bert_config.json", optional=True)
    prefix = _prefix(_object(folder / "config_sentence_transformers.json", optional=True))
    if prefix and config.get("include_prompt") is False:
        raise _RefusedError("its pooling leaves out the tokens of its default prompt (include_prompt), which is not served")
    most = transformer.get("max_seq_length")
    return Sentence(
        pooling=Pooling(_modes(config), normalize="Normalize" in kinds),
        most_tokens=most if isinstance(most, int) and most > 0 else None,
        lower=transformer.get("do_lower_case") is True,
        prefix=prefix,
        sizes=_sizes(whole),
    )


def _modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for name, mode in _LEGACY.items() if config.get(name) is True] or ["mean"]
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list) or not modes or any(mode not in POOLING for mode in modes) or len(modes) > len(POOLING):
        raise _RefusedError(f"its pooling mode {given!r:.80} is not one of {', '.join(POOLING)}")
    return tuple(modes)


def _sizes(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    given = config.get("matryoshka_dimensions")
    if isinstance(given, list):
        return tuple(size for size in given if isinstance(size, int) and size > 0)
    return None if config.get("is_matryoshka") is True else ()


def _prefix(config: Mapping[str, Any]) -> str:
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise _RefusedError(f"config_sentence_transformers.json: the default prompt {name!r:.80} is not among its prompts")
    return prompt


def _below(path: object) -> str:
    """A module's folder, which must lie in the model's."""
    if not isinstance(path, str) or not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise _RefusedError(f"{_FILE}: the path {path!r:.80} is no folder of the model")
    return path


def _object(file: Path, *, optional: bool = False) -> Mapping[str, Any]:
    if optional and not file.is_file():
        return {}
    content = _json(file)
    if not isinstance(content, dict):
        raise _RefusedError(f"{file.parent.name}/{file.name} is not a JSON object")
    return content


def _json(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise _RefusedError(f"{file.parent.name}/{file.name} is longer than {_MOST_BYTES} bytes")
        return json.loads(raw)
    except OSError as error:
        raise _RefusedError(f"{file.parent.name}/{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError(f"{file.parent.name}/{file.name} is not JSON") from error


def activation(config: Mapping[str, Any]) -> str:
    """What a classifier of pairs does to its one logit, as sentence-transformers' CrossEncoder has it; empty for what is not served."""
    own = config.get("sentence_transformers")
    given = own.get("activation_fn") if isinstance(own, dict) else None
    given = given or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    return {"Sigmoid": "sigmoid", "Identity": "identity"}.get(str(given).rpartition(".")[2], "")
