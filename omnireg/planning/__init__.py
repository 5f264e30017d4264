"""From a recipe to a plan: what will be read, merged, carried and written, from headers alone.

Everything that can be wrong with a recipe or with the way its checkpoints fit together is found
here, before a byte of weights is read or written.
"""

from omnireg.planning.fitting import open_model, plan
from omnireg.planning.parameters import names_a_model, same_place
from omnireg.planning.plans import Engine, Input, Merged, Plan, Shape

__all__ = [
    "Engine",
    "Input",
    "Merged",
    "Plan",
    "Shape",
    "names_a_model",
    "open_model",
    "plan",
    "same_place",
]
