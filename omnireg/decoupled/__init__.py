"""Use a package: what it weighs, and one host out of it."""

from omnireg.decoupled.extracting import extract
from omnireg.decoupled.inspecting import Inspection, inspect

__all__ = ["Inspection", "extract", "inspect"]
