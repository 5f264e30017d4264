"""``--score-command``: a command that scores a folder."""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from omnireg.boundary.documents import parse_json
from omnireg.boundary.text import quoted
from omnireg.errors import ConfigError, EvaluationError

Scorer = Callable[[Path], float | Mapping[str, float]]


def command_score(command: str | None, tasks: str | None) -> Scorer | None:
    """Return what runs a command on a folder and reads what it prints last; None without one.

    Raises:
        ConfigError: the command cannot be read, or tasks are given as well.
    """
    if not command:
        return None
    if tasks:
        raise ConfigError("--score-command and --tasks both say how to score; leave one out")
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise ConfigError(f"--score-command: {exc}") from exc
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--score-command: no program {' '.join(words[:1])!r}; give its path")
    if not any("{}" in word for word in words):
        words.append("{}")

    def score(package: Path) -> float | Mapping[str, float]:
        line = [word.replace("{}", str(package)) for word in words]
        try:
            done = subprocess.run(
                line, capture_output=True, encoding="utf-8", errors="backslashreplace", check=False
            )
        except OSError as exc:
            raise EvaluationError(f"cannot run {words[0]}: {exc.strerror}") from exc
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
            raise EvaluationError(f"{words[0]} failed with {done.returncode}: {said[0]}")
        last = (done.stdout.strip().splitlines() or [""])[-1]
        try:
            found: float | Mapping[str, float] = parse_json(
                last, words[0], error=EvaluationError, infinite=True
            )
        except EvaluationError as exc:
            raise EvaluationError(
                f"{words[0]} printed {quoted(last)} last; print a number, or a JSON object of"
                " numbers"
            ) from exc
        return found

    return score
