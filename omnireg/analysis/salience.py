"""How much a head matters, from what the options' logits are with and without it.

Three figures of arXiv 2506.01872, section 5.2: accuracy of the generated answer, accuracy of the
most likely option ("probability accuracy"), and a divergence between the options' distributions.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.boundary.documents import parse_json, read_json
from omnireg.boundary.files import open_regular, reason, replacing
from omnireg.boundary.text import quoted
from omnireg.errors import EvaluationError

ORIGINAL = "original"
_HEAD = re.compile(r"layer(\d+)-head(\d+)\.jsonl(\.gz)?")
#: answers and logits of all questions are far shorter
_LONGEST_LINE = 1 << 26
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Asked:
    """What a model said to a question with options.

    Attributes:
        answer: the answer that it generated.
        logits: of every option's first token.
    """

    answer: str
    logits: tuple[float, ...]

    @property
    def distribution(self) -> NDArray[np.float64]:
        """Softmax over the options."""
        found = np.array(self.logits, np.float64)
        raised = np.exp(found - found.max())
        share: NDArray[np.float64] = raised / raised.sum()
        return share


@dataclass(frozen=True)
class Key:
    """What is right: the answer's text, and which option it is."""

    answer: str
    option: int


Run = Mapping[str, Asked]


@dataclass(frozen=True)
class Head:
    """What masking one head does.

    Attributes:
        layer: from 0.
        head: from 0.
        accuracy: share of generated answers that are right; None where nobody says what is right.
        prob_accuracy: share of questions whose most likely option is right; None as well.
        kl_true: mean KL(original ‖ masked) over the questions, in nats.
        kl_lm_extend: what the paper's released code calls KL: mean over questions and options of
            p·(ln p − q), with the masked probability q where its logarithm belongs.
    """

    layer: int
    head: int
    accuracy: float | None
    prob_accuracy: float | None
    kl_true: float
    kl_lm_extend: float

    def to_json(self) -> dict[str, Any]:
        """Return the head's part of the JSON object of ``analyze heads``."""
        return dict(vars(self))


@dataclass(frozen=True)
class Salience:
    """Every head that was masked, and the model as it is.

    Attributes:
        accuracy: of the model as it is.
        prob_accuracy: of the model as it is.
        n: number of questions.
        heads: by layer and head.
    """

    accuracy: float | None
    prob_accuracy: float | None
    n: int
    heads: tuple[Head, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``analyze heads``."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "prob_accuracy": self.prob_accuracy,
            "heads": [head.to_json() for head in self.heads],
        }


def head(
    layer: int, number: int, original: Run, masked: Run, right: Mapping[str, Key] | None
) -> Head:
    """Return what masking one head did.

    Raises:
        EvaluationError: the two runs are of other questions, or of other options.
    """
    if set(original) != set(masked):
        odd = sorted(set(original) ^ set(masked))
        raise EvaluationError(
            f"layer {layer}, head {number}: other questions than the original's: {odd[0]}"
        )
    true, lm_extend = [], []
    for name, before in original.items():
        if len(before.logits) != len(masked[name].logits):
            raise EvaluationError(f"layer {layer}, head {number}: {name} has other options")
        p, q = before.distribution, masked[name].distribution
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.log(p)
            true.append(float(np.where(p > 0, p * (logarithm - np.log(q)), 0).sum()))
            lm_extend.append(float(np.where(p > 0, p * (logarithm - q), 0).mean()))
    return Head(
        layer,
        number,
        accuracy(masked, right),
        probability_accuracy(masked, right),
        float(np.mean(true)),
        float(np.mean(lm_extend)),
    )


def accuracy(run: Run, right: Mapping[str, Key] | None) -> float | None:
    """Return the share of generated answers that are right."""
    if right is None:
        return None
    return float(np.mean([asked.answer.strip() == right[n].answer for n, asked in run.items()]))


def probability_accuracy(run: Run, right: Mapping[str, Key] | None) -> float | None:
    """Return the share of questions whose most likely option is right."""
    if right is None:
        return None
    return float(
        np.mean([int(np.argmax(asked.logits)) == right[n].option for n, asked in run.items()])
    )


# files


def from_logits(folder: Path, answers: Path | None = None) -> Salience:
    """Compute the figures from stored logits.

    Args:
        folder: ``original.jsonl[.gz]`` and ``layerLL-headHH.jsonl[.gz]``, one
            ``{"id": [answer, [option logits]]}`` a line, options being A, B, C, … in order.
        answers: a JSON file, id → letter; without it there are no accuracies.

    Raises:
        EvaluationError: a file is missing or damaged, or of other questions.
    """
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder}; --logits takes one with logits")
    original = next(
        (p for p in (folder / f"{ORIGINAL}.jsonl", folder / f"{ORIGINAL}.jsonl.gz") if p.exists()),
        None,
    )
    if original is None:
        raise EvaluationError(f"{folder} holds no {ORIGINAL}.jsonl or {ORIGINAL}.jsonl.gz")
    before = read_run(original)
    right = _answers(answers, before) if answers else None
    heads = [
        head(int(found[1]), int(found[2]), before, read_run(file), right)
        for file in sorted(folder.iterdir())
        if (found := _HEAD.fullmatch(file.name))
    ]
    if not heads:
        raise EvaluationError(f"{folder} holds no layerLL-headHH.jsonl: no head was masked")
    heads.sort(key=lambda each: (each.layer, each.head))
    return Salience(
        accuracy(before, right), probability_accuracy(before, right), len(before), tuple(heads)
    )


def read_run(file: Path) -> dict[str, Asked]:
    """Read a file of answers and logits.

    Raises:
        EvaluationError: it is damaged; names the line.
    """
    found: dict[str, Asked] = {}
    number = 0
    try:
        for line in _lines(file):
            number += 1
            if line.strip():
                found |= _asked(parse_json(line, f"{file}:{number}", error=EvaluationError))
    except (OSError, EOFError, zlib.error) as exc:
        raise EvaluationError(f"cannot read {file}: {reason(exc)}") from exc
    except (ValueError, TypeError, AttributeError, OverflowError) as exc:
        raise EvaluationError(f'{file}:{number}: no {{"id": [answer, [logits]]}}: {exc}') from exc
    if not found:
        raise EvaluationError(f"{file} is empty")
    return found


def _asked(said: Any) -> dict[str, Asked]:
    """Return what a line says.

    Raises:
        ValueError, TypeError, AttributeError, OverflowError: it has another form.
    """
    found = {}
    for name, (answer, logits) in said.items():
        found[name] = Asked(str(answer), tuple(float(value) for value in logits))
        if len(logits) < 2 or not np.isfinite(found[name].logits).all():
            raise ValueError("two or more finite logits are needed")
    return found


def write_run(file: Path, run: Run) -> None:
    """Write answers and logits; the file appears when it is complete.

    Raises:
        EvaluationError: it cannot be written.
    """
    # without a time, so that equal content is equal bytes
    with (
        replacing(file, EvaluationError) as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream,
    ):
        for name, asked in run.items():
            line = json.dumps({name: [asked.answer, list(asked.logits)]})
            stream.write(line.encode() + b"\n")


def file_of(folder: Path, layer: int, number: int) -> Path:
    """Return the file of one head."""
    return folder / f"layer{layer:02d}-head{number:02d}.jsonl.gz"


def _lines(file: Path) -> Iterator[bytes]:
    with (
        open(open_regular(file, EvaluationError), "rb") as raw,  # noqa: PTH123 - a descriptor
        gzip.open(raw) if file.suffix == ".gz" else raw as stream,
    ):
        while line := stream.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise ValueError("the line is too long")
            yield line


def _answers(file: Path, run: Run) -> dict[str, Key]:
    said = read_json(file, error=EvaluationError, remedy="write a JSON object: id → letter")
    if not isinstance(said, dict):
        raise EvaluationError(f"{file} is no JSON object: id → letter")
    found = {}
    for name, asked in run.items():
        letter = said.get(name, "")
        letters: Sequence[str] = _LETTERS[: len(asked.logits)]
        if not isinstance(letter, str) or len(letter) != 1 or letter not in letters:
            raise EvaluationError(
                f"{file}: question {name} has the answer {quoted(letter)}; one of"
                f" {', '.join(letters)}"
            )
        found[name] = Key(letter, letters.index(letter))
    return found
