"""Merge and record, verify: the functions behind ``omnireg merge`` and ``omnireg verify``."""

from omnireg.merging.merges import Job, Receipt, merge, merge_together

__all__ = ["Job", "Receipt", "merge", "merge_together"]
