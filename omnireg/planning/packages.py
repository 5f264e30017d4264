"""What a package asks of a recipe, and which model stands for which modality."""

from collections.abc import Sequence

from omnireg.backbones.alignment import LanguageModel
from omnireg.errors import ConfigError, PlanError, did_you_mean
from omnireg.planning.parameters import same_place
from omnireg.plugins.host import Strategy
from omnireg.recipe import Recipe


def check_package(recipe: Recipe, strategy: Strategy, reference: LanguageModel) -> None:
    """Refuse what a package cannot be made of.

    Raises:
        ConfigError: the method decouples nothing, the base is missing or is a host, or the recipe
            asks for one model's mask or for a host.
    """
    if not hasattr(strategy.load(), "side_outputs"):
        raise ConfigError(
            f"{recipe.merge_method} has no masks to put into a package; use one that has, such as"
            " merge_method: mmer"
        )
    if not hasattr(strategy.load(), "rescaling"):
        raise ConfigError(
            f"{recipe.merge_method} has side_outputs, but no rescaling, which a package needs too;"
            " ask its author"
        )
    if recipe.base_model is None or reference.is_host:
        raise ConfigError("a package needs base_model: the text model that all were made of")
    if (recipe.parameters or {}).get("mask_of") is not None:
        raise ConfigError("mask_of chooses one mask, but a package keeps all of them; drop it")
    if recipe.omnireg.host:
        raise ConfigError("a package keeps every host; drop omnireg.host")


def senses_of(recipe: Recipe, models: Sequence[LanguageModel]) -> dict[str, str]:
    """Return the model of every modality, in the order of the recipe.

    A model that the recipe names stands for what it says there and nothing else. Of the others each
    stands for what its class takes in, as far as no earlier one does.

    Raises:
        ConfigError: a modality is given to something that is no model of the recipe, or a model
            stands for no modality at all.
    """
    refs = [model.checkpoint.ref for model in models]
    found = {
        sense: _listed(ref, refs, f"omnireg.modalities.{sense}")
        for sense, ref in recipe.omnireg.modalities.items()
    }
    named = set(found.values())
    for model in models:
        if model.checkpoint.ref not in named:
            for sense in sorted(model.layout.senses):
                found.setdefault(sense, model.checkpoint.ref)
    idle = [model for model in models if model.checkpoint.ref not in found.values()]
    if idle:
        first, taken = idle[0], list(found.values())
        own = sorted(first.layout.senses, reverse=True)
        spare = next((sense for sense in own if taken.count(found[sense]) > 1), "task")
        raise ConfigError(
            f"no modality is left for {', '.join(model.checkpoint.ref for model in idle)}; name one"
            f" under omnireg.modalities, such as {{{spare}: {first.checkpoint.ref}}}"
        )
    return {sense: found[sense] for sense in sorted(found, key=lambda s: (refs.index(found[s]), s))}


def _listed(ref: str, refs: Sequence[str], where: str) -> str:
    known = next((known for known in refs if same_place(known) == same_place(ref)), None)
    if known is None:
        raise ConfigError(f"{where}: {ref} is no model of the recipe{did_you_mean(ref, refs)}")
    return known


def check_one_dtype(tensors: dict[str, tuple[str, str]]) -> None:
    """Refuse tensors whose merged dtype is not the base's, by (base's, merged).

    Raises:
        PlanError: names the first.
    """
    odd = next(((n, a, b) for n, (a, b) in tensors.items() if a != b), None)
    if odd:
        raise PlanError(
            f"{odd[0]} is {odd[1]} in the base and {odd[2]} after merging, but a package keeps the"
            " base's dtype; save the models in the dtype of the base first"
        )
