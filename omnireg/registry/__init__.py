"""The registry of checkpoints, their families, their runs and their scores."""

from omnireg.registry.api import Registry
from omnireg.registry.lineage import Direction, Edge, Lineage, Node
from omnireg.registry.records import (
    Benchmark,
    Checkpoint,
    Kind,
    Parent,
    Role,
    Run,
    RunStatus,
    Score,
)
from omnireg.registry.render import Drawing, render

__all__ = [
    "Benchmark",
    "Checkpoint",
    "Direction",
    "Drawing",
    "Edge",
    "Kind",
    "Lineage",
    "Node",
    "Parent",
    "Registry",
    "Role",
    "Run",
    "RunStatus",
    "Score",
    "render",
]
