"""Run a plan, record it, and let the result appear whole or not at all."""

from omnireg.engine.merging import Receipt, merge

__all__ = ["Receipt", "merge"]
