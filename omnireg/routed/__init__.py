"""The routed model: one model out of a package, every token run with its modality's weights."""

from omnireg.routed.layers import Storage
from omnireg.routed.model import OmniModel, load
from omnireg.routed.processor import Inputs, OmniProcessor
from omnireg.routed.routes import TextRouting

__all__ = ["Inputs", "OmniModel", "OmniProcessor", "Storage", "TextRouting", "load"]
