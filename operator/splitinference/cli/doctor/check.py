"""What one check of `doctor` says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
GOOD, WARN, BAD, UNKNOWN = "ok", "warning", "problem", "unknown"
CHART = "helm upgrade --install splitinference charts/splitinference -n splitinference-system --reuse-values"


@dataclass(frozen=True)
class Check:
    """`state`: ok, warning, problem, or unknown (it could not be looked at). `fix`: a command or a sentence."""

    name: str
    state: str
    message: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return {"check": self.name, "state": self.state, "message": self.message, **({"fix": self.fix} if self.fix else {})}
