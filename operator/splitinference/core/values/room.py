"""Room that pods of ours need which are no segments: the second gateway of a rollout, say."""

from collections.abc import Mapping

from pydantic import Field

from splitinference.core.values.value import Value


class Room(Value):
    """Memory and CPU that stay free on one node that may have the pod, where a plan exists that leaves them."""

    what: str = Field(min_length=1, description="for what, in words")
    labels: Mapping[str, str] = Field(default_factory=dict, description="labels of nodes that may have the pod")
    memory_bytes: int = Field(ge=0)
    millicores: int = Field(default=0, ge=0, description="CPU request of the pod")
    segment_millicores: int = Field(default=0, ge=0, description="CPU request of each segment, which counts beside it")
    waits: str = Field(default="", description="in words, where the pod is there and waits for the room; empty: it may come at any time")
