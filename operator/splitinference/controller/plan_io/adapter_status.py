"""`status.adapters`: which adapters there are, what their content is, and whether clients may name them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from splitinference.controller.api.adapter_spec import AdapterSpec
from splitinference.controller.api.conditions import Condition, Kind
from splitinference.core.values.value import Value
from splitinference_protocol.route import NamedAdapter
from splitinference_protocol.wire.request import ADAPTER_DIGEST

State = Literal["Loading", "Serving", "Failed", "Removing"]


class AdapterStatus(Value):
    """One adapter. `source`: hash of where it is read from: what was read from another source is not this adapter's. `serves`: clients may
    name it. `previous`: the digest of what was read from another source, which the name means until this one serves. `segments`: how many
    of the segments have it."""

    name: str
    source: str
    state: State
    message: str = ""
    digest: str = ""
    rank: int = 0
    bytes: int = 0
    serves: bool = False
    previous: str = ""
    segments: str = ""

    def as_status(self) -> dict[str, Any]:
        """As JSON; what is not known is left out."""
        return {key: value for key, value in self.model_dump(mode="json").items() if value not in ("", 0, False)}


class Read(Value):
    """What a loader tells of an adapter."""

    digest: str = Field(pattern=f"^{ADAPTER_DIGEST.pattern}$")
    rank: int = Field(ge=1)
    bytes: int = Field(ge=0)


def source_hash(adapter: AdapterSpec) -> str:
    """Names the source."""
    return hashlib.sha256(json.dumps(adapter.source.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]


def read_adapters(status: Mapping[str, Any]) -> dict[str, AdapterStatus]:
    """By name; what cannot be read is left out, and found out anew."""
    found = {}
    for entry in status.get("adapters") or ():
        try:
            read = AdapterStatus.model_validate(entry)
        except ValidationError:
            continue
        found[read.name] = read
    return found


def served(adapters: Mapping[str, AdapterStatus]) -> tuple[NamedAdapter, ...]:
    """Those that clients may name, as the route has them."""
    digests = {name: found.digest if found.serves else found.previous for name, found in sorted(adapters.items())}
    return tuple(NamedAdapter(name=name, digest=digest) for name, digest in digests.items() if digest)


@dataclass(frozen=True)
class Outcome:
    """What came of a pass. `settled`: nothing is under way."""

    adapters: Mapping[str, AdapterStatus] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    settled: bool = True

    @property
    def condition(self) -> Condition | None:
        """AdaptersReady; None where there are no adapters."""
        kind, all_of = Kind.ADAPTERS_READY, [found for found in self.adapters.values() if found.state != "Removing"]
        if not all_of:
            return None
        if failed := [each for each in all_of if each.state == "Failed"]:
            message = "; ".join(f"{each.name}: {each.message}" for each in failed)
            return Condition(kind=kind, holds=False, reason="AdapterFailed", message=message)
        if loading := [each for each in all_of if each.state == "Loading"]:
            message = "; ".join(f"{each.name}: {each.message}" for each in loading)
            return Condition(kind=kind, holds=None, reason="Loading", message=message)
        message = f"all segments have {len(all_of)} adapters: {', '.join(sorted(found.name for found in all_of))}"
        return Condition(kind=kind, holds=True, reason="AllLoaded", message=message[:500])
