"""Settings that were tried and what came of them, kept in a file so that a search can go on."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from omnireg.boundary.documents import parse_json, validated
from omnireg.boundary.files import read_text, reason, write_text
from omnireg.boundary.text import quoted
from omnireg.errors import ConfigError, EvaluationError
from omnireg.workflows.grid import Point

_BEGIN = '{"recipe"'
#: measures a folder: one number, or several by name; higher is better
Score = Callable[[Path], float | Mapping[str, float]]


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it.

    Attributes:
        point: the parameters that were tried.
        values: by modality or benchmark; by "" where one number was given for all.
        errors: standard errors of the values, where they are known.
    """

    point: Point
    values: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return fmean(self.values.values())


def numbers(said: float | Mapping[str, float]) -> dict[str, float]:
    """Return what a score says, by name.

    Raises:
        EvaluationError: it is no number, or says nothing.
    """
    found = dict(said) if isinstance(said, Mapping) else {"": said}
    if not found:
        raise EvaluationError("the score is an empty object; give a number for each modality")
    made = {name: _number(value) for name, value in found.items()}
    if any(map(math.isnan, made.values())):
        raise EvaluationError(f"the score is {quoted(said)}; a number, or one for each modality")
    return made


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_alike(first: Trial, last: Trial) -> None:
    """Refuse trials that cannot be ranked.

    Raises:
        EvaluationError: the last one's values have other names than the first one's.
    """
    if set(first.values) != set(last.values):
        before, now = (", ".join(sorted(t.values)) or "one number" for t in (first, last))
        raise EvaluationError(
            f"the score of {dict(first.point)} is about {before}, that of {dict(last.point)} about"
            f" {now}; if the program was changed, move the file of finished points away"
        )


class _Noted(BaseModel):
    """A line of a file of trials."""

    model_config = ConfigDict(extra="allow")

    recipe: str
    values: dict[str, float]
    by: str | None = None
    errors: dict[str, float] = Field(default_factory=dict)


class Notebook:
    """A JSON Lines file of finished trials, by recipe and by how they were scored."""

    def __init__(self, file: Path | None, by: str) -> None:
        """Read what is there.

        Args:
            file: the file; None keeps nothing.
            by: how trials are scored; those that were scored in another way do not count.

        Raises:
            ConfigError: it holds no trials.
        """
        self._file, self._by = file, by
        self._known: dict[str, dict[str, Any]] = {}
        if file is None or not file.exists():
            return
        whole, tail = _torn(read_text(file, error=ConfigError))
        if tail:
            write_text(file, whole, ConfigError)
        try:
            for number, line in enumerate(whole.split("\n"), 1):
                if line.strip():
                    self._read(line, f"line {number}")
        except ConfigError as exc:
            raise ConfigError(
                f"{file} holds no trials ({exc}); move it away, or name another place"
            ) from exc

    def _read(self, line: str, where: str) -> None:
        data = parse_json(line, where, error=ConfigError, infinite=True, remedy="")
        noted = validated(_Noted, data, where, error=ConfigError, remedy="")
        if noted.by in (None, self._by):
            self._known[noted.recipe] = noted.model_dump()

    def recall(self, recipe: str) -> dict[str, Any] | None:
        """Return what was noted of a recipe's digest."""
        return self._known.get(recipe)

    def note(self, recipe: str, trial: Trial, **more: Any) -> None:
        """Note a finished trial.

        Raises:
            ConfigError: the file cannot be written.
        """
        line = {
            "recipe": recipe,
            "by": self._by,
            "point": dict(trial.point),
            "values": dict(trial.values),
            **({"errors": dict(trial.errors)} if trial.errors else {}),
            **more,
        }
        self._known[recipe] = line
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as exc:
            raise ConfigError(f"cannot write {self._file}: {reason(exc)}") from exc


def _torn(text: str) -> tuple[str, str]:
    """Return whole lines, and half a trial that a process which was killed left behind."""
    whole, newline, tail = text.rpartition("\n")
    is_trial = tail.startswith(_BEGIN[: len(tail)]) and not text.endswith("\n")
    return (whole + newline, tail) if is_trial else (text, "")
