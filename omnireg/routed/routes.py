"""Which weights a token is run with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from omnireg.errors import ConfigError, did_you_mean

#: elements of a tensor per entry of its rank index: the index says how many elements of the sparse
#: vector come before each multiple of this
STEP = 4096


class Blend(StrEnum):
    """How a weight set is put together from θ₀, τ★ and masks."""

    BASE = "base"
    MERGED = "merged"
    AVERAGE = "average"
    UNION = "union"


class TextRouting(StrEnum):
    """With what weights text tokens are run; those of other tokens follow from their modality.

    ``auto``: by how many models the input has tokens of: none, θ₀; one, its θ̂ᵢ; several, θ₀ + τ★.
    ``present`` and ``all``: θ₀ + m̄∘τ★, with the average mask of those models, or of all.
    ``union``: with every element that one of the masks present keeps. ``base``: θ₀.
    ``merged``: θ₀ + τ★.
    """

    AUTO = "auto"
    PRESENT = "present"
    ALL = "all"
    UNION = "union"
    BASE = "base"
    MERGED = "merged"


@dataclass(frozen=True)
class Route:
    """One set of weights: θ₀; θ₀ + τ★; or θ₀ + c∘τ★ with a blend of the masks of some models."""

    blend: Blend
    models: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.blend, *self.models))

    @property
    def model(self) -> str | None:
        """The one model whose θ̂ᵢ this is, if it is one's."""
        return self.models[0] if len(self.models) == 1 else None


@dataclass(frozen=True)
class Blended:
    """A route in one tensor: the models whose masks it takes, and the weight of each.

    No models mean all of τ★, and ``plain`` none of it. A ``union`` has one weight.
    """

    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    plain: bool = False
    union: bool = False


BASE = Route(Blend.BASE)
MERGED = Route(Blend.MERGED)


def route_of(models: Sequence[str], blend: Blend = Blend.AVERAGE) -> Route:
    """Return the weights of a blend; of one model they are its θ̂ᵢ, and of none θ₀."""
    if not models:
        return BASE
    return Route(Blend.AVERAGE if len(models) == 1 else blend, tuple(models))


def text_route(rule: str, present: Sequence[str], models: Sequence[str]) -> Route:
    """Return the weights of text tokens in an input.

    Args:
        rule: a :class:`TextRouting`, or a modality whose weights all text is run with.
        present: the models that the input has tokens of, in the package's order.
        models: all models of the package.
    """
    match rule:
        case TextRouting.BASE:
            return BASE
        case TextRouting.MERGED:
            return MERGED
        case TextRouting.ALL:
            return route_of(models)
        case TextRouting.UNION:
            return route_of(present, Blend.UNION)
        case TextRouting.PRESENT:
            return route_of(present)
        case TextRouting.AUTO:
            return route_of(present) if len(present) < 2 else MERGED
    return route_of([rule])


def check_rule(rule: str, modalities: Mapping[str, str]) -> str:
    """Return a rule for text tokens, a modality turned into the name of its model.

    Raises:
        ConfigError: it is neither a rule nor a modality.
    """
    known = [str(known) for known in TextRouting]
    if rule in known:
        return rule
    if rule in modalities:
        return modalities[rule]
    choices = [*known, *modalities]
    raise ConfigError(
        f"text_routing: no such rule or modality {rule!r}{did_you_mean(rule, choices)}: choose one"
        f" of {', '.join(choices)}"
    )
