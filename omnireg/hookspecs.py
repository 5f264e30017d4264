"""The whole plugin contract: three hooks and the values they take.

A plugin is a distribution with an entry point in the group ``omnireg`` that names a module. The
module implements any of these hooks with :data:`hookimpl`; an implementation may take fewer
arguments than its specification. Arguments will be added over time, never renamed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod, TensorGroup
    from torch import Tensor

PROJECT = "omnireg"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

_LISTED = "one of the recipe's models"
#: Type of a strategy's parameter that names a model listed in the recipe. Such a value is checked
#: against the list, and follows the model wherever an engine puts it.
ListedModel = Annotated[str, _LISTED]


class Scope(StrEnum):
    """Type of a parameter that says over what a statistic is taken.

    ``model`` asks for a first pass over all weights, which only the streaming engine makes.
    """

    TENSOR = "tensor"
    MODEL = "model"


class Survey(Protocol):
    """One pass over all weights, before the pass that merges them."""

    def add(self, observation: Any) -> None:
        """Take in what was seen of the next tensor; called in a fixed order."""

    def result(self) -> Any:
        """Return what all tensors say together."""


@dataclass(frozen=True)
class Surveyed:
    """What is known of the whole model when one of its tensors is looked at or merged.

    Attributes:
        models: the inputs that are not the base; their places are the same for every tensor.
        found: what the last survey found.
        number: the tensor's place in the order of observation.
    """

    models: tuple[str, ...]
    found: Any = None
    number: int = 0

    def place(self, model: object) -> int:
        """Return a model's place, given the id of its entry in a tensor group."""
        return self.models.index(str(model))


class Surveying(Protocol):
    """What a strategy with a first pass has beside mergekit's interface; the streaming engine asks.

    Its ``merge_group`` is given one more keyword, ``surveyed``.
    """

    def survey(self, known: Surveyed, parameters: Mapping[str, Any]) -> Survey | None:
        """Return the next survey that is needed; None when there is none (any more).

        ``parameters`` are those of a tensor that every model has.
        """

    def observe(
        self, survey: Any, group: "TensorGroup", known: Surveyed, parameters: Mapping[str, Any]
    ) -> Any:
        """Look at one tensor's inputs for a survey."""


@dataclass(frozen=True)
class Decoupling:
    """How one model is taken out of a merged task vector τ★, in one tensor.

    Attributes:
        vector: τᵢ in working precision.
        mask: boolean, same shape; the model keeps τ★ where it is true.
    """

    vector: "Tensor"
    mask: "Tensor"


@dataclass(frozen=True)
class Rescaling:
    """A factor sᵢ = ‖τᵢ‖ₚ / ‖mᵢ∘τ★‖ₚ of every masked vector.

    Attributes:
        power: p, 1 or 2.
        scope: one factor per tensor, or per model.
    """

    power: int
    scope: Scope


class DecouplingStrategy(Protocol):
    """What a strategy has beside mergekit's interface if its merges can be written as a package.

    A package keeps τ★ and every model's mask, so that each model θ₀ + sᵢ·(mᵢ∘τ★) can be taken out
    and routed. A parameter ``mask_of`` of the type :data:`ListedModel` gives the same model alone.
    """

    def side_outputs(
        self, group: "TensorGroup", parameters: Mapping[str, Any], surveyed: Surveyed | None = None
    ) -> "tuple[Tensor, Mapping[str, Decoupling]]":
        """Return τ★ of one tensor in the group's dtype, and how each model is decoupled from it.

        That stored τ★ defines every model. Masks are by reference, and lie within its support.
        """

    def rescaling(self, parameters: Mapping[str, Any]) -> Rescaling | None:
        """Return how masked vectors are scaled; None where they are not."""


@dataclass(frozen=True)
class Sense:
    """How a host takes in one modality.

    Attributes:
        placeholder: config keys, first match wins, that hold the id of the placeholder token;
            none where media stand for no token, and the host runs in code of its own alone.
        argument: what the host's processor calls its media: ``images``, ``audio``, ``videos``.
    """

    placeholder: tuple[str, ...]
    argument: str


@dataclass(frozen=True)
class HostLayout:
    """Where a model class keeps its language model, and what else it holds.

    The language model itself is found by its embedding (the one ``…embed_tokens.weight``), so a
    layout only has to name what is *not* part of it.

    Attributes:
        architectures: names as in ``config.json``'s ``architectures``.
        senses: modality → how it enters. Empty for a text model.
        carried: shell-style patterns of the tensors beside the language model, in every on-disk
            form the class has had.
        ignored: patterns of parts that have an embedding of their own and must not be taken for
            the language model (a speech decoder, say); they are carried too.
        text_architecture: class of the extracted language model; read from the text config's
            ``model_type`` when empty.
    """

    architectures: tuple[str, ...]
    senses: Mapping[str, Sense] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    text_architecture: str = ""


@dataclass(frozen=True)
class Conduct:
    """How an evaluation is run.

    Attributes:
        include_path: a folder with more tasks.
        limit: of how many items of each task to use; all when None.
        n_shot: examples in the prompt; what the task says when None.
        chat_template: put prompts into the chat template; what is usual for the evaluator when
            None.
        device: where to compute.
        dtype: what to compute in; what the checkpoint is stored in when None.
        batch_size: how many items at once.
        max_new_tokens: the longest answer, in tokens; the evaluator's default when None.
        seed: of random numbers; the evaluator's default when None.
        tick: called with (stage, done, total).
    """

    include_path: Path | None = None
    limit: int | None = None
    n_shot: int | None = None
    chat_template: bool | None = None
    device: str = "cpu"
    dtype: str | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    seed: int | None = None
    tick: Callable[[str, int, int], None] = field(
        default=lambda stage, done, total: None, compare=False, repr=False
    )


@dataclass(frozen=True)
class Result:
    """One number that an evaluator measured.

    Attributes:
        benchmark: what it was measured on.
        metric: what was measured.
        value: the number; finite.
        higher_is_better: which way is better.
        stderr: its standard error.
        n: number of items.
        n_shot: examples in the prompt.
        filter: how answers were read.
        split: of the benchmark.
        ability: what it says something about: ``knowledge``, ``reasoning``, ``image``, …
        modality: of the benchmark's media, where all are of one.
        partial: whether items were left out; such a score tops no leaderboard.
        setup: what else the value depends on, by name.
        details: what is worth knowing beside it.
    """

    benchmark: str
    metric: str
    value: float
    higher_is_better: bool = True
    stderr: float | None = None
    n: int | None = None
    n_shot: int | None = None
    filter: str | None = None
    split: str | None = None
    ability: str | None = None
    modality: str | None = None
    partial: bool = False
    setup: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Something that measures checkpoints.

    Attributes:
        name: what scores are recorded under.
        version: of whatever measures.
    """

    name: str

    @property
    def version(self) -> str:
        """Return the version of what measures."""

    def evaluate(self, folder: Path, tasks: Sequence[str], conduct: Conduct) -> Iterable[Result]:
        """Measure the checkpoint in a folder on tasks.

        Raises:
            EvaluationError: no such task, or it cannot be run.
        """


class RegisterStrategy(Protocol):
    """What :func:`omnireg_register_strategies` receives."""

    def __call__(self, method: "MergeMethod | str", *, name: str | None = None) -> None:
        """Register a mergekit method, or a ``"module:attribute"`` that is imported when needed.

        ``name`` is required for the lazy form, so that listing strategies imports nothing.
        """


class RegisterHost(Protocol):
    """What :func:`omnireg_register_hosts` receives."""

    def __call__(self, layout: HostLayout) -> None:
        """Register the layout of one or more host classes."""


class RegisterEvaluator(Protocol):
    """What :func:`omnireg_register_evaluators` receives."""

    def __call__(self, evaluator: "Evaluator | str", *, name: str | None = None) -> None:
        """Register an evaluator, or a ``"module:attribute"`` that is imported when needed.

        ``name`` is required for the lazy form.
        """


@hookspec
def omnireg_register_strategies(register: RegisterStrategy) -> None:
    """Offer merge strategies: call ``register`` once for each mergekit merge method."""


@hookspec
def omnireg_register_hosts(register: RegisterHost) -> None:
    """Offer host layouts: call ``register`` once for each :class:`HostLayout`."""


@hookspec
def omnireg_register_evaluators(register: RegisterEvaluator) -> None:
    """Offer evaluators: call ``register`` once for each :class:`Evaluator`."""
