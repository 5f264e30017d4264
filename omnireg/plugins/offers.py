"""What plugins offer: strategies and evaluators, imported behind the guard when asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from omnireg.errors import PluginError
from omnireg.hookspecs import Evaluator, HostLayout
from omnireg.plugins.contract import is_name
from omnireg.plugins.evaluators import GuardedEvaluator
from omnireg.plugins.installed import Origin
from omnireg.plugins.isolation import guarded, reason, tell, told_if_slow

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod


@contextmanager
def importing(what: str, origin: Origin, failed: Callable[[str], Exception]) -> Iterator[None]:
    """Guard an import of a plugin's code, and say so if it takes long.

    Args:
        what: what is imported, for whoever waits.
        origin: where it comes from; what comes with omnireg is trusted.
        failed: returns the error, given the reason.
    """
    if not origin.is_ours:
        with told_if_slow(f"importing {what}", origin.turned_off), guarded(failed):
            yield
        return
    try:
        yield
    except Exception as exc:
        raise failed(reason(exc)) from exc


def _imported(target: Any) -> Any:
    """Return an object, or what ``"module:attribute"`` names."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Offer:
    """What a plugin registered under a name: an object, or where to import it from."""

    name: str
    target: Any
    origin: Origin

    #: what it is called in messages
    kind = "offer"
    #: what it has to be
    wanted = "an object"

    @property
    def problem(self) -> str | None:
        """Why it cannot be used; None if it can. It is imported to find out."""
        return str(self._outcome) if isinstance(self._outcome, PluginError) else None

    def _usable(self) -> Any:
        if isinstance(self._outcome, PluginError):
            raise PluginError(str(self._outcome)) from self._outcome.__cause__
        return self._outcome

    @cached_property
    def _outcome(self) -> Any:
        """What was imported, or why that failed; not tried again."""
        try:
            return self._found()
        except PluginError as exc:
            return exc

    def _found(self) -> Any:
        what = f"{self.kind} {self.name!r} of {self.origin.distribution}"
        self._prepare()

        def failed(reason: str) -> PluginError:
            return PluginError(
                f"{what} cannot be imported from {self._place}: {reason}; reinstall or remove"
                f" that {'file' if self.origin.file_version else 'distribution'}"
            )

        lazy = isinstance(self.target, str)
        with importing(what, self.origin, failed) if lazy else guarded(failed):
            found = _imported(self.target)
            fits = self._fits(found)
        if not fits:
            raise PluginError(f"{what} is not {self.wanted} of that name; ask its author")
        return found

    @property
    def _place(self) -> str:
        return self.target if isinstance(self.target, str) else self.origin.entry_point

    def _prepare(self) -> None:
        """Import what is needed to judge it."""

    def _fits(self, found: Any) -> bool:
        """Whether something is what the name promises."""
        return found is not None


@dataclass(frozen=True)
class Strategy(Offer):
    """A registered merge method, imported only when asked for."""

    kind = "strategy"
    wanted = "a mergekit MergeMethod"

    def load(self) -> "MergeMethod":
        """Return the mergekit method.

        Raises:
            PluginError: the target cannot be imported or is not a merge method of this name.
        """
        method: MergeMethod = self._usable()
        return method

    def load_or_warn(self) -> "MergeMethod | None":
        """Return the mergekit method, or say why it cannot be used and return None."""
        if self.problem is not None:
            tell(self.problem)
            return None
        return self.load()

    def _prepare(self) -> None:
        # outside the guard: its seconds are not the plugin's, and what it sets up stays
        import mergekit.merge_methods  # noqa: F401

    def _fits(self, found: Any) -> bool:
        from mergekit.merge_methods import InputContract, MergeMethod, MergeMethodSpec
        from mergekit.merge_methods.base import ParameterScope, ParameterSpec

        spec = getattr(found, "spec", None)
        if not isinstance(found, MergeMethod) or not isinstance(spec, MergeMethodSpec):
            return False
        return (
            spec.name == self.name
            and isinstance(spec.contract, InputContract)
            and all(
                isinstance(p, ParameterSpec) and is_name(p.name) and p.scope in set(ParameterScope)
                for p in spec.parameters
            )
        )


@dataclass(frozen=True)
class RegisteredEvaluator(Offer):
    """A registered evaluator, imported only when asked for."""

    kind = "evaluator"
    wanted = "an evaluator"

    def load(self) -> Evaluator:
        """Return the evaluator, guarded.

        Raises:
            PluginError: the target cannot be imported, or is no evaluator of this name.
        """
        return GuardedEvaluator(self.name, self.origin, self._usable())

    def _fits(self, found: Any) -> bool:
        named: bool = getattr(found, "name", None) == self.name
        return named and callable(getattr(found, "evaluate", None))


class Status(StrEnum):
    """Whether a plugin could be loaded."""

    OK = "ok"
    BROKEN = "broken"


@dataclass
class Plugin:
    """One entry point: where it came from, what it registered, or why it is broken."""

    origin: Origin
    status: Status = Status.OK
    error: str | None = None
    strategies: list[Strategy] = field(default_factory=list)
    layouts: list[HostLayout] = field(default_factory=list)
    evaluators: list[RegisteredEvaluator] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)

    def breaks(self, error: str) -> None:
        """Note why it is broken, and drop what it registered."""
        self.status, self.error = Status.BROKEN, error
        self.strategies.clear()
        self.layouts.clear()
        self.evaluators.clear()

    def check(self) -> None:
        """Import what was registered lazily; note what of it cannot be used, which stays listed."""
        offers: list[Offer] = [*self.strategies, *self.evaluators]
        if problems := [problem for offer in offers if (problem := offer.problem)]:
            self.status, self.error = Status.BROKEN, "; ".join(problems)

    def to_json(self) -> dict[str, Any]:
        """Return the plugin as ``omnireg plugins --json`` prints it."""
        return {
            "distribution": self.origin.distribution,
            "version": self.origin.version,
            "entry_point": self.origin.entry_point,
            "status": str(self.status),
            "error": self.error,
            "strategies": [strategy.name for strategy in self.strategies],
            "evaluators": [evaluator.name for evaluator in self.evaluators],
            "hooks": self.hooks,
        }
