"""The registry of checkpoints, their families, their runs and their scores."""

from omnireg.registry.api import Registry
from omnireg.registry.lineage import Direction, Edge, Lineage, Node
from omnireg.registry.ranking import Compared, Comparison, Mean, Place, Row
from omnireg.registry.reading import Answer
from omnireg.registry.records import (
    Action,
    Analysis,
    Benchmark,
    Changes,
    Checkpoint,
    Event,
    Kind,
    Parent,
    Publication,
    Role,
    Run,
    RunStatus,
    Score,
    SubjectType,
)
from omnireg.registry.render import Drawing, render
from omnireg.registry.signatures import THRESHOLDS, Signature

__all__ = [
    "THRESHOLDS",
    "Action",
    "Analysis",
    "Answer",
    "Benchmark",
    "Changes",
    "Checkpoint",
    "Compared",
    "Comparison",
    "Direction",
    "Drawing",
    "Edge",
    "Event",
    "Kind",
    "Lineage",
    "Mean",
    "Node",
    "Parent",
    "Place",
    "Publication",
    "Registry",
    "Role",
    "Row",
    "Run",
    "RunStatus",
    "Score",
    "Signature",
    "SubjectType",
    "render",
]
