"""The Hugging Face Hub: publish a checkpoint with its lineage, and read lineage back."""

from omnireg.hub.publishing import (
    PublicationPlan,
    Receipt,
    carry_out,
    plan_publication,
    publish,
)
from omnireg.hub.pulling import Pulled, pull

__all__ = [
    "PublicationPlan",
    "Pulled",
    "Receipt",
    "carry_out",
    "plan_publication",
    "publish",
    "pull",
]
