"""Work that spans several stages: searching settings by merging or measuring again and again."""

from omnireg.workflows.calibrating import Calibration, Criterion, calibrate
from omnireg.workflows.grid import parse_grid

__all__ = ["Calibration", "Criterion", "calibrate", "parse_grid"]
