"""Signatures of a modality extension or a merge that failed, told from recorded scores.

The four are those of the reading of arXiv 2506.01872: instruction following collapses, code
collapses, knowledge stands still in spite of much training, a merge is worse than all it was made
of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.ranking import compare
from omnireg.registry.records import Checkpoint, Role, Score

#: name → threshold
THRESHOLDS: Mapping[str, float] = {
    # points of IFEval lost against the base
    "instruction_drop": 15.0,
    # HumanEval+ pass@1 at or below which code is gone, where the base is above it
    "code_floor": 0.0,
    # relative gain on MMLU below which much training taught no knowledge …
    "knowledge_gain": 0.01,
    # … and how many tokens are much
    "knowledge_tokens": 1e12,
    # points that a merge may lie below the worst of its inputs
    "below_inputs": 0.0,
}
_INSTRUCTION, _CODE, _KNOWLEDGE = "IFEval", "HumanEval+", "MMLU"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that fired, with what was seen and the threshold it crossed."""

    signature: str
    benchmark: str
    observed: float
    threshold: float
    against: str

    def to_json(self) -> dict[str, Any]:
        """Return the signature as a JSON object of `check`."""
        return {
            "signature": self.signature,
            "benchmark": self.benchmark,
            "observed": self.observed,
            "threshold": self.threshold,
            "against": self.against,
        }


def thresholds(changed: Mapping[str, float]) -> dict[str, float]:
    """Return all thresholds with some changed.

    Raises:
        RegistryError: there is no such threshold; suggests the closest.
    """
    for name in changed:
        if name not in THRESHOLDS:
            raise RegistryError(
                f"no threshold {name!r}{did_you_mean(name, THRESHOLDS)}: there are"
                f" {', '.join(THRESHOLDS)}"
            )
    return {**THRESHOLDS, **changed}


def check(
    checkpoint: Checkpoint,
    scores: Mapping[str, Sequence[Score]],
    limits: Mapping[str, float] = THRESHOLDS,
) -> list[Signature]:
    """Return the signatures that fire on a checkpoint.

    Args:
        checkpoint: whose scores are looked at.
        scores: its scores and its parents', by name.
        limits: every threshold, see :data:`THRESHOLDS`.
    """
    bases = [p.name for p in checkpoint.parents if p.role in (Role.FINETUNED_FROM, Role.BASE)]
    inputs = [p.name for p in checkpoint.parents if p.role is Role.MODEL]
    found: list[Signature] = []
    for base in bases:
        found += _against_base(checkpoint, base, scores, limits)
    if len(inputs) > 1:
        found += _below_inputs(checkpoint.name, inputs, scores, limits["below_inputs"])
    return found


def _against_base(
    checkpoint: Checkpoint,
    base: str,
    scores: Mapping[str, Sequence[Score]],
    limits: Mapping[str, float],
) -> Iterator[Signature]:
    name = checkpoint.name
    tokens = (checkpoint.details or {}).get("training_tokens", 0)
    for row in compare([name], scores, base).rows:
        mine = row.values[name]
        if row.benchmark == _INSTRUCTION and -mine.delta > limits["instruction_drop"]:
            yield Signature(
                "instruction_following_collapse", row.benchmark, mine.delta,
                -limits["instruction_drop"], base,
            )  # fmt: skip
        is_code = row.benchmark == _CODE and row.metric.lower() in ("pass@1", "pass_at_1")
        floor = limits["code_floor"]
        if is_code and mine.value <= floor < row.reference:
            yield Signature("code_collapse", row.benchmark, mine.value, floor, base)
        trained = isinstance(tokens, int | float) and tokens > limits["knowledge_tokens"]
        if row.benchmark == _KNOWLEDGE and trained and row.reference:
            gain = mine.delta / row.reference
            if gain < limits["knowledge_gain"]:
                yield Signature(
                    "no_knowledge_gain", row.benchmark, gain, limits["knowledge_gain"], base
                )


def _below_inputs(
    name: str, inputs: Sequence[str], scores: Mapping[str, Sequence[Score]], margin: float
) -> Iterator[Signature]:
    compared = {parent: compare([name], scores, parent).rows for parent in inputs}
    by_key: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for parent, rows in compared.items():
        for row in rows:
            by_key.setdefault((row.benchmark, row.metric), []).append((parent, row))
    for (benchmark, _), found in by_key.items():
        if len(found) < len(inputs):
            continue
        gains = [
            (row.values[name].delta * (1 if row.higher_is_better else -1), parent)
            for parent, row in found
        ]
        best, parent = max(gains)
        if best < -margin:
            yield Signature("below_every_input", benchmark, best, -margin, parent)
