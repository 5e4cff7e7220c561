"""Operations of the wire, and which role may ask for which."""

from collections.abc import Mapping

from splitinference_protocol.wire.errors import FORBIDDEN, SegmentError

OPS = (
    "step",
    "infer",
    "echo",
    "release",
    "probe",
    "stats",
    "kv_pull",
    "kv_export",
    "record",
    "recorded",
    "verify",
    "compute",
    "compare",
    "adapter_load",
    "adapters",
)
"""Operations; a new one comes last, as its place is its number."""
SIDES = INPUT, OUTPUT = "input", "output"
"""What `record` keeps of a sequence: the hidden states that a segment received, or those that it sent."""
BESIDE = frozenset({"record", "recorded", "verify", "compute", "compare"})
"""What verification asks for, beside the chain."""
ALONG_A_ROUTE = frozenset({"step", "infer", "echo", "release"})
GATEWAY, SEGMENT, OPERATOR, LOADER = "gateway", "segment", "operator", "loader"
ROLES = (GATEWAY, SEGMENT, OPERATOR, LOADER)
LOCAL = "local"  # who asks Triton itself, on the pod's own loopback
MAY: Mapping[str, frozenset[str]] = {
    GATEWAY: frozenset({"step", "infer", "release", "kv_pull", "echo", "stats", "probe", *BESIDE}),
    SEGMENT: frozenset({"step", "infer", "release", "kv_export", "echo"}),
    OPERATOR: frozenset({"probe", "adapters"}),
    LOADER: frozenset({"adapter_load", "adapters"}),
    LOCAL: frozenset({"probe", "stats", "echo"}),
    "": frozenset(OPS),  # without certificates nobody can be told apart: tests and benchmarks on loopback
}
"""The operations of each role."""


def check_role(op: str, role: str) -> None:
    """SegmentError `forbidden` when a peer of this role may not ask for the operation."""
    if op not in MAY.get(role, ()):
        raise SegmentError(FORBIDDEN, f"{op} is not for the role {role or 'none'}")
