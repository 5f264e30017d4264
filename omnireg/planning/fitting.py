"""Whether the checkpoints of a recipe fit together, and how."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from omnireg.backbones.alignment import EMBEDDING, LanguageModel, align, find_language_model
from omnireg.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnireg.checkpoints.loading import check_complete
from omnireg.checkpoints.shards import FLOATS
from omnireg.errors import CheckpointError, ConfigError, PlanError, did_you_mean
from omnireg.hookspecs import PROJECT
from omnireg.moved import renamed
from omnireg.planning.packages import check_one_dtype, check_package, senses_of
from omnireg.planning.parameters import check_parameters, idle_filters, same_place
from omnireg.planning.plans import DTYPES, Engine, Input, Plan, Shape
from omnireg.plugins.host import DISABLE_VARIABLE, PluginHost, Strategy
from omnireg.recipe import Output, Recipe, as_recipe

Opening = Callable[[str], LanguageModel]


@renamed(host="plugins")
def plan(
    recipe: Recipe | Path | str,
    plugins: PluginHost | None = None,
    *,
    engine: str = "auto",
    weights: bool = True,
) -> Plan:
    """Plan a merge.

    Args:
        recipe: a recipe, the path of one, or its YAML text.
        plugins: plugins to use; all installed ones when None.
        engine: ``stream``, ``mergekit``, or ``auto``: stream for all that it can plan.
        weights: fetch the weights of inputs on the Hub; else headers alone, which are enough to
            know whether they fit, not to merge.

    Raises:
        ConfigError: the method, a parameter or the ``omnireg:`` block is wrong.
        CheckpointError: an input is missing or damaged.
        PlanError: the inputs do not fit together.
    """
    recipe, _ = as_recipe(recipe)
    plugins = plugins or PluginHost()
    strategy = _strategy(recipe, plugins)
    spec = strategy.load().spec
    reasons = what_only_mergekit_plans(recipe)
    chosen = _engine(engine, reasons)
    _check_dtypes(recipe)
    _check_inputs(recipe, strategy)
    surveys = chosen is Engine.STREAM and hasattr(strategy.load(), "survey")
    check_parameters(recipe, spec, first_pass=surveys)
    opened = partial(open_model, plugins=plugins, weights=weights)
    if reasons:
        return _left_to_mergekit(recipe, strategy, opened)
    models = {ref: opened(ref) for ref in recipe.references}
    reference = models[recipe.base_model or recipe.references[0]]
    inputs = tuple(
        Input(ref, "base" if ref == recipe.base_model else "model", align(models[ref], reference))
        for ref in _order(recipe)
    )
    made = replace(_shaped(recipe, strategy, inputs, reference, opened), engine=chosen)
    _check_numbers(made)
    for idle in idle_filters(recipe, made.merged):
        _warn_once(idle)
    return made


def _check_numbers(made: Plan) -> None:
    """Refuse weights that are no plain numbers, such as those of a quantised checkpoint."""
    for tensor in made.merged.values():
        odd = [source for source in tensor.sources if source.dtype not in FLOATS]
        counts = all(source.dtype.startswith(("I", "U", "BOOL")) for source in tensor.sources)
        if odd and not (counts and not tensor.name.endswith(".weight")):
            raise PlanError(
                f"{odd[0].ref}: {tensor.name} is {odd[0].dtype}, which cannot be merged; if the"
                " checkpoint is quantised, save it in bfloat16 first"
            )


@cache
def _warn_once(text: str) -> None:
    """Warn, but not of every point of a sweep."""
    logging.getLogger(PROJECT).warning("%s", text)


def _engine(asked: str, reasons: list[str]) -> Engine:
    if asked not in ("auto", *Engine):
        raise ConfigError(
            f"unknown engine {asked!r}{did_you_mean(asked, map(str, Engine))};"
            " use auto, stream or mergekit"
        )
    if asked == Engine.STREAM and reasons:
        raise ConfigError(
            f"the stream engine does not plan {', '.join(reasons)}; use --engine auto"
        )
    return Engine.MERGEKIT if reasons or asked == Engine.MERGEKIT else Engine.STREAM


def _shaped(
    recipe: Recipe,
    strategy: Strategy,
    inputs: tuple[Input, ...],
    reference: LanguageModel,
    opened: Opening,
) -> Plan:
    wanted, carrier = recipe.omnireg.output, recipe.omnireg.host
    hosts = [i for i in inputs if i.model.is_host]
    classes = {i.model.checkpoint.architecture for i in inputs}
    if wanted is Output.PACKAGE:
        check_package(recipe, strategy, reference)
        senses = senses_of(recipe, [i.model for i in inputs if i.role != "base"])
        made = Plan(recipe, strategy, inputs, reference, Shape.PACKAGE, None, senses=senses)
        check_one_dtype({n: (reference.header(n).dtype, t.dtype) for n, t in made.merged.items()})
        return made
    if recipe.omnireg.modalities or recipe.omnireg.base != "embed":
        raise ConfigError("omnireg.modalities and omnireg.base are for output: package; drop them")
    if wanted is Output.BACKBONE and carrier:
        raise ConfigError("omnireg.host is given but omnireg.output is backbone; drop one of them")
    if wanted is Output.HOST or carrier:
        if carrier is None and len(hosts) != 1:
            listed = ", ".join(i.ref for i in hosts) or "none of the inputs is one"
            raise ConfigError(f"omnireg.output: host needs omnireg.host; choose a host: {listed}")
        chosen = _host_of(carrier or hosts[0].ref, inputs, reference, opened)
        _check_host_dtype(recipe, chosen)
        return Plan(recipe, strategy, inputs, reference, Shape.HOST, chosen)
    if wanted is None and len(classes) == 1 and hosts:
        _check_same_parts(inputs)
        _check_host_dtype(recipe, reference)
        return Plan(recipe, strategy, inputs, reference, Shape.WHOLE, reference)
    return Plan(recipe, strategy, inputs, reference, Shape.BACKBONE, None)


def _host_of(
    ref: str, inputs: tuple[Input, ...], reference: LanguageModel, opened: Opening
) -> LanguageModel:
    wanted = same_place(ref)
    known = next((i.model for i in inputs if same_place(i.ref) == wanted), None)
    model = known or opened(ref)
    if not model.is_host:
        raise ConfigError(f"omnireg.host: {ref} is a text model; name one that has encoders")
    align(model, reference)
    return model


def _check_host_dtype(recipe: Recipe, model: LanguageModel) -> None:
    """A host's shards are copied with their headers, so its dtype cannot change on the way."""
    has = model.header(EMBEDDING).dtype
    for key in ("dtype", "out_dtype"):
        asked = getattr(recipe, key)
        if asked and DTYPES[asked] != has:
            name = next((n for n, code in DTYPES.items() if code == has), has)
            raise ConfigError(
                f"{key}: {asked}, but {model.checkpoint.ref} is {name} and carries the result; drop"
                f" {key}, or save that checkpoint in {asked} first"
            )


def _check_same_parts(inputs: tuple[Input, ...]) -> None:
    first = inputs[0].model
    for other in (i.model for i in inputs[1:]):
        odd = set(first.carried) ^ set(other.carried)
        if odd:
            raise PlanError(
                f"{first.checkpoint.ref} and {other.checkpoint.ref} are of one class but hold"
                f" different encoder tensors: {', '.join(sorted(odd)[:6])}; save both with the same"
                " version of transformers, or merge backbones (omnireg.output: backbone)"
            )


def open_model(ref: str, plugins: PluginHost, *, weights: bool = True) -> LanguageModel:
    """Open a checkpoint, make sure it is complete, and find its language model.

    Without ``weights`` only the headers of a checkpoint on the Hub are fetched.

    Raises:
        CheckpointError: missing, damaged or incomplete.
        PlanError: a class or a tensor that cannot be explained.
    """
    checkpoint = open_checkpoint(ref, weights=weights, headers=not weights)
    _refuse_quantised(checkpoint)
    check_complete(checkpoint)
    return find_language_model(checkpoint, plugins.layouts)


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    said = checkpoint.config.get("quantization_config")
    if said:
        method = said.get("quant_method") if isinstance(said, dict) else None
        raise CheckpointError(
            f"{checkpoint.ref} is quantised{f' ({method})' if method else ''}, as its config.json"
            " says: its weights are no plain numbers; save it in bfloat16 first"
        )


def _order(recipe: Recipe) -> list[str]:
    listed = [entry.model for entry in recipe.models or ()]
    unlisted = recipe.base_model and recipe.base_model not in listed
    return [*listed, *([recipe.base_model] if unlisted and recipe.base_model else [])]


def _strategy(recipe: Recipe, plugins: PluginHost) -> Strategy:
    methods = plugins.methods()
    found = methods.get(recipe.merge_method)
    if found is None:
        broken = "; ".join(f"{p.origin.distribution}: {p.error}" for p in plugins.broken())
        off = ", ".join(plugins.disabled)
        raise ConfigError(
            f"unknown merge_method {recipe.merge_method!r}"
            f"{did_you_mean(recipe.merge_method, methods)}; see: omnireg strategies"
            + (f" (broken plugins: {broken})" if broken else "")
            + (f" ({DISABLE_VARIABLE} turns off {off})" if off else "")
        )
    return found


def _check_dtypes(recipe: Recipe) -> None:
    for key in ("dtype", "out_dtype"):
        value = getattr(recipe, key)
        if value is not None and value not in DTYPES:
            hint = did_you_mean(value, DTYPES)
            raise ConfigError(f"{key}: unknown dtype {value!r}{hint}; use {', '.join(DTYPES)}")


def _check_inputs(recipe: Recipe, strategy: Strategy) -> None:
    if recipe.models is None:
        return
    places = [same_place(ref) for ref in recipe.references]
    for ref, place in zip(recipe.references, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{ref!r} is in the recipe under two names; list it once")
    spec = strategy.load().spec
    base = recipe.base_model
    if base is None and spec.contract.base == "required":
        raise ConfigError(
            f"{spec.name} needs base_model: the checkpoint the models were fine-tuned from"
        )
    try:
        spec.contract.validate_ids(_order(recipe), base)
    except ValueError as exc:
        raise ConfigError(f"{spec.name}: {exc}") from exc


def what_only_mergekit_plans(recipe: Recipe) -> list[str]:
    """Return what a recipe asks for that only mergekit's own planner does."""
    asked = {
        "slices": recipe.slices,
        "modules": recipe.modules,
        "tokenizer surgery": recipe.tokenizer or recipe.tokenizer_source,
        "chat_template": recipe.chat_template,
        "LoRA adapters": any("+" in ref for ref in recipe.references),
    }
    return [what for what, given in asked.items() if given]


def _left_to_mergekit(recipe: Recipe, strategy: Strategy, opened: Opening) -> Plan:
    """Slices, modules, tokenizer surgery and adapters, on text models, are mergekit's to plan."""
    inputs, found = [], {}
    for ref in recipe.references:
        plain = ref.partition("+")[0]
        found[ref] = model = opened(plain)
        if model.is_host:
            raise ConfigError(
                f"{ref} is a multimodal host, and mergekit loses a host's language model with"
                " slices, modules, tokenizer surgery or adapters; extract its backbone first:"
                f" omnireg backbone extract {plain} OUT"
            )
        role = "base" if ref == recipe.base_model else "model"
        inputs.append(Input(ref, role, align(model, model)))
    for source in (s for part in recipe.slices or () for s in part.sources):
        depth, (first, last) = found[source.model].depth, source.layer_range
        if not 0 <= first <= last <= depth:
            raise PlanError(
                f"layer_range [{first}, {last}]: {source.model} has {depth} layers; give a range"
                f" within [0, {depth}]"
            )
    reference = found[recipe.base_model or recipe.references[0]]
    return Plan(
        recipe, strategy, tuple(inputs), reference, Shape.BACKBONE, None, Engine.MERGEKIT, True
    )
