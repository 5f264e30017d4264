"""Evaluators behind the guard: what they raise, print and yield."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omnireg.errors import EvaluationError, OmniregError
from omnireg.hookspecs import Conduct, Evaluator, Result
from omnireg.plugins.contract import checked_result, is_name, written
from omnireg.plugins.installed import Origin
from omnireg.plugins.isolation import contained, reason

_END = object()


@dataclass
class GuardedEvaluator:
    """An evaluator that cannot end the process, print to stdout, or give what is no result."""

    name: str
    origin: Origin
    inner: Evaluator

    @property
    def version(self) -> str:
        """Return the version of what measures.

        Raises:
            EvaluationError: it has none.
        """
        with self._guarded():
            found = self.inner.version
        if found is not None and not is_name(found):
            raise EvaluationError(f"{self} has the version {written(found)}, which is no text")
        return found

    def evaluate(self, folder: Path, tasks: Sequence[str], conduct: Conduct) -> Iterator[Result]:
        """Measure the checkpoint in a folder, see :class:`omnireg.hookspecs.Evaluator`.

        Raises:
            EvaluationError: it cannot be measured, or what was measured is no result.
        """
        _ = self.version  # without one nothing could be recorded
        with self._guarded():
            results = iter(self.inner.evaluate(folder, tasks, conduct))
        while True:
            with self._guarded():
                found = next(results, _END)
                result = found if found is _END else checked_result(found, str(self))
            if not isinstance(result, Result):
                return
            yield result

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with contained():
                yield
        except (KeyboardInterrupt, OmniregError):
            raise
        except BaseException as exc:
            if self.origin.is_ours and isinstance(exc, Exception):
                raise  # a defect of ours keeps its traceback
            raise EvaluationError(
                f"{self}: {reason(exc)}; ask its author, or choose another with --evaluator"
            ) from exc

    def __str__(self) -> str:
        return f"evaluator {self.name!r} of {self.origin.distribution}"
