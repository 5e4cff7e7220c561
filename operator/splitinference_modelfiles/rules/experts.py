"""Mixtures of experts: how many a block has, how many of them a token is routed to, and where their weights are stored.

Checkpoints hold each expert's matrices apart. transformers 5 computes with all experts of a block as one tensor, gate above up, which a
segment puts together while it reads them. gpt-oss is stored as it is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.rules.settings import refuse_nulls, shown, whole
from splitinference_modelfiles.stored.headers import ModelRefusedError

FUSED_EXPERTS = ("gate_up_proj", "gate_up_proj")
"""As `gate_and_up` of a family whose experts are stored together."""
_MODULE = "mlp"


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How a family stores its experts. Names are those of checkpoints, inside a block."""

    path: str
    router: str
    gate_and_up: tuple[str, str]
    down: str
    count_keys: tuple[str, ...]
    most: int  # experts where config.json does not say
    routed: int  # likewise, of those that a token is routed to
    inner_key: str
    inner: int | None = None  # likewise; None: it must be there
    some_blocks: bool = False  # `decoder_sparse_step` and `mlp_only_layers` say which blocks have experts

    @property
    def fused(self) -> bool:
        """Whether all experts of a block are stored as one tensor."""
        return self.gate_and_up == FUSED_EXPERTS


@dataclass(frozen=True)
class Experts:
    """The experts of one model."""

    form: ExpertForm
    count: int
    routed: int
    inner: int
    blocks: frozenset[int]

    def share(self, name: str) -> float:
        """How much of a tensor one token reads and is multiplied with, by its name: a part of the experts, all of anything else."""
        return self.routed / self.count if f".{self.form.path}.experts." in name else 1.0

    def shapes(self, hidden: int) -> dict[str, tuple[int | None, ...]]:
        """Tensors of the router and the experts of one block."""
        form, inner = self.form, self.inner
        at = f"{form.path}.experts"
        shapes: dict[str, tuple[int | None, ...]] = {f"{form.path}.{form.router}.weight": (self.count, hidden)}
        if form.fused:
            return shapes | {
                f"{form.path}.{form.router}.bias": (self.count,),
                f"{at}.gate_up_proj": (self.count, hidden, 2 * inner),
                f"{at}.gate_up_proj_bias": (self.count, 2 * inner),
                f"{at}.down_proj": (self.count, inner, hidden),
                f"{at}.down_proj_bias": (self.count, hidden),
            }
        for number in range(self.count):
            for name in form.gate_and_up:
                shapes[f"{at}.{number}.{name}.weight"] = (inner, hidden)
            shapes[f"{at}.{number}.{form.down}.weight"] = (hidden, inner)
        return shapes


def experts_of(config: Mapping[str, Any], form: ExpertForm, blocks: int) -> Experts:
    """The experts that config.json describes. ModelRefusedError where it contradicts itself."""
    refuse_nulls(config, frozenset({*form.count_keys, "num_experts_per_tok", form.inner_key}))
    count = whole(config, *form.count_keys, default=form.most)
    routed = whole(config, "num_experts_per_tok", default=form.routed)
    if routed > count:
        raise ModelRefusedError(f"config.json: num_experts_per_tok is {routed}, and there are {count} experts")
    with_experts = set(range(blocks))
    if form.some_blocks:
        step = whole(config, "decoder_sparse_step", default=1)
        plain = config.get("mlp_only_layers")
        if plain is not None and not (isinstance(plain, list) and all(type(one) is int for one in plain)):
            raise ModelRefusedError(f"config.json: mlp_only_layers is {shown(plain)}, expected a list of whole numbers")
        with_experts = {number for number in range(blocks) if (number + 1) % step == 0} - set(plain or ())
    return Experts(form, count, routed, whole(config, form.inner_key, default=form.inner), frozenset(with_experts))


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor that is a part of one that is computed with: of expert `expert`, rows from `half` halves on."""

    name: str
    expert: int
    half: int | None  # 0: the gate, the upper half of the rows; 1: up, the lower half; None: all rows


def parts_of(name: str, form: ExpertForm, count: int) -> tuple[str, tuple[Part, ...]]:
    """Where a tensor of transformers' block is stored: its one name in checkpoints, or the parts that it is made of."""
    stored = name.replace(f".{_MODULE}.", f".{form.path}.", 1)
    at, _, kind = stored.rpartition(".")
    if form.fused or not at.endswith(f".{form.path}.experts"):
        return stored, ()
    if kind == "down_proj":
        return "", tuple(Part(f"{at}.{number}.{form.down}.weight", number, None) for number in range(count))
    return "", tuple(
        Part(f"{at}.{number}.{matrix}.weight", number, half) for number in range(count) for half, matrix in enumerate(form.gate_and_up)
    )
