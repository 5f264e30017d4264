"""Publishing to the Hugging Face Hub: the card, the scores, and one guarded commit."""

from omnireg.hub.publishing import PublicationPlan, Receipt, plan_publication, publish

__all__ = ["PublicationPlan", "Receipt", "plan_publication", "publish"]
