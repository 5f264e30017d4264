"""Run a plan, record it, and let the result appear whole or not at all."""

from omnireg.engine.merging import Job, Receipt, merge, merge_together

__all__ = ["Job", "Receipt", "merge", "merge_together"]
