"""Use a package: what it weighs, one host out of it, one model more in it."""

from omnireg.decoupled.adding import add
from omnireg.decoupled.extracting import extract
from omnireg.decoupled.inspecting import Inspection, inspect

__all__ = ["Inspection", "add", "extract", "inspect"]
