"""Whether the CRD in the cluster has what this version reads and writes."""

from splitinference.cli.doctor.check import Json
from splitinference.controller.api.crd_gaps import gaps
from splitinference.controller.api.group import VERSION

STATUS_FIELDS = ("plan", "observed", "transition", "calibration", "adaptation", "decisions", "proposal", "operator")
"""Fields of the status that this plugin shows."""


def status_gaps(crd: Json) -> tuple[str, ...]:
    """Fields of the status that the CRD drops."""
    versions = (crd.get("spec") or {}).get("versions") or []
    schema = next((found["schema"]["openAPIV3Schema"] for found in versions if found.get("name") == VERSION), None)
    if schema is None:
        return (VERSION,)
    known = ((schema.get("properties") or {}).get("status") or {}).get("properties") or {}
    return tuple(f"status.{name}" for name in STATUS_FIELDS if name not in known)


def all_gaps(crd: Json) -> tuple[str, ...]:
    """Fields of spec and status that the CRD drops."""
    return tuple(dict.fromkeys([*gaps(crd), *status_gaps(crd)]))
