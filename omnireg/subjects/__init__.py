"""Checkpoints that can be asked: text models, hosts and packages, behind one face."""

from omnireg.subjects.items import Item, Medium, read_items
from omnireg.subjects.opening import open_subject
from omnireg.subjects.subject import Response, Subject

__all__ = ["Item", "Medium", "Response", "Subject", "open_subject", "read_items"]
