"""Room that pods of ours need which are no segments: the second gateway of a rollout, say, or a verifier."""

from collections.abc import Mapping

from pydantic import Field

from splitinference.core.values.cluster import Node
from splitinference.core.values.value import Value

Free = dict[str, tuple[int, float]]
"""Bytes and millicores that are free on a node."""


class SecondCopies(Value):
    """Layers that nodes without the labels `trusted` compute are computed on one further node, a trusted one, or on two further nodes."""

    trusted: Mapping[str, str]
    replicas: int = Field(default=1, ge=1, le=2)
    millicores: int = Field(default=0, ge=0, description="CPU request of each such pod")
    held: Mapping[str, int] = Field(
        default_factory=dict, description="bytes that such pods hold by node; the snapshot counts them as taken"
    )
    held_millicores: Mapping[str, int] = Field(default_factory=dict, description="the same of CPU requests")
    avoided: frozenset[str] = Field(default=frozenset(), description="nodes that gave a wrong output")

    def without(self, free: Free) -> Free:
        """`free` with what such pods hold now given back."""
        bytes_, cores = self.held, self.held_millicores
        return {name: (left[0] + bytes_.get(name, 0), left[1] + cores.get(name, 0)) for name, left in free.items()}

    def trusts(self, node: Node | None) -> bool:
        """Whether the node has all labels of trusted nodes."""
        return node is not None and all(node.labels.get(key) == value for key, value in self.trusted.items())


class Room(Value):
    """Memory and CPU that stay free on one node that may have the pod, where a plan exists that leaves them."""

    what: str = Field(min_length=1, description="for what, in words")
    labels: Mapping[str, str] = Field(default_factory=dict, description="labels of nodes that may have the pod")
    memory_bytes: int = Field(ge=0)
    millicores: int = Field(default=0, ge=0, description="CPU request of the pod")
    segment_millicores: int = Field(default=0, ge=0, description="CPU request of each segment, which counts beside it")
    waits: str = Field(default="", description="in words, where the pod is there and waits for the room; empty: it may come at any time")
