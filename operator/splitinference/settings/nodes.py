"""Settings of what is assumed of nodes, and of how they are measured."""

from collections.abc import Mapping

from pydantic import Field
from pydantic_settings import BaseSettings


class NodeDefaults(BaseSettings):
    """Figures of nodes and links without labels or measurements."""

    catalogue_folder: str = Field(
        default="",
        description=(
            "Folder with catalogue files (`*.json`, as `splitinference calibrate fit` writes them) that add to the built-in catalogue "
            "of processor products. The operator does not start with a file that it cannot use. Empty: the built-in one alone."
        ),
    )
    core_gflops: float = Field(
        default=20.0,
        gt=0,
        description="GFLOP/s of one core of a node without label or measurement: a current server core at matrix products in bfloat16.",
    )
    core_memory_bandwidth_gbps: float = Field(
        default=5.0,
        gt=0,
        description="Memory bandwidth in GB/s for one core of a node without label or measurement: a socket's 100 GB/s over 20 cores.",
    )
    link_mbps: float = Field(
        default=1000.0, gt=0, description="Mbit/s between nodes whose link is neither measured nor labelled: plain Ethernet."
    )
    link_rtt_ms: float = Field(
        default=0.5, ge=0, description="Round trip in ms between nodes whose link is neither measured nor labelled: one switch."
    )


class MeasuringSettings(BaseSettings):
    """How nodes are measured."""

    measure_nodes: bool = Field(
        default=True,
        description="Whether to measure what nodes compute, by a pod of some seconds on each node. Labels of a node take precedence.",
    )
    measure_wait_seconds: float = Field(
        default=120.0,
        ge=0,
        description=(
            "How long a first plan waits for the measurement of nodes without labels. After that, defaults are assumed for the others."
        ),
    )
    measurements_per_hour: int = Field(
        default=60, ge=1, description="Number of nodes measured per hour, one at a time. 60: one minute each, image pull included."
    )
    measure_again_days: float = Field(
        default=30.0,
        gt=0,
        description="Days until a node is measured again. It is also measured again when its kernel, machine or cores change.",
    )
    measuring_priority_class: str = Field(
        default="", description="PriorityClass of the pods that measure nodes. The chart creates one: the lowest."
    )
    measuring_tolerations: tuple[Mapping[str, str], ...] = Field(
        default=(), description="Tolerations of the pods that measure nodes, as JSON. Nodes with other taints are not measured."
    )
