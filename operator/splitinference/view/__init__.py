"""A SplitInference as people look at it: pipelines, nodes, links, moves and decisions. The command line and the page share it.

`read` makes the values in `model` from Kubernetes objects as JSON. Nothing here opens a connection, and nothing here raises: what an older
or newer operator wrote differently is left out.
"""

from splitinference.view.model import (
    ConditionView,
    DecisionView,
    HeldView,
    LinkView,
    MoveView,
    NodeView,
    PipelineView,
    PlanView,
    ProposalView,
    ResourceView,
    SegmentView,
    TrafficView,
)
from splitinference.view.moves import moves
from splitinference.view.read import read, read_all
from splitinference.view.read_nodes import read_nodes

__all__ = [
    "ConditionView",
    "DecisionView",
    "HeldView",
    "LinkView",
    "MoveView",
    "NodeView",
    "PipelineView",
    "PlanView",
    "ProposalView",
    "ResourceView",
    "SegmentView",
    "TrafficView",
    "moves",
    "read",
    "read_all",
    "read_nodes",
]
