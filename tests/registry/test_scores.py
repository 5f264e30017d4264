"""Scores: what makes two of them the same measurement, and what is no score at all."""

from typing import Any

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Registry


def test_a_score_keeps_its_conditions(family: Registry) -> None:
    """Everything that was said about a score comes back."""
    score = family.add_score(
        "merged",
        "mme",
        1510.5,
        metric="perception",
        n=2374,
        stderr=3.5,
        n_shot=0,
        filter="none",
        split="test",
        evaluator="lmms-eval",
        evaluator_version="0.3",
        source="https://example.org/paper",
        setup={"seed": 7},
        ability="vision",
        unit="points",
        details={"config": [1, 2]},
    )
    assert family.scores("merged") == [score]
    assert score.to_json() == {
        "checkpoint": "merged",
        "benchmark": "mme",
        "metric": "perception",
        "value": 1510.5,
        "higher_is_better": True,
        "n": 2374,
        "stderr": 3.5,
        "n_shot": 0,
        "filter": "none",
        "split": "test",
        "evaluator": "lmms-eval",
        "evaluator_version": "0.3",
        "source": "https://example.org/paper",
        "setup": {"seed": 7},
        "ability": "vision",
        "unit": "points",
        "partial": False,
        "details": {"config": [1, 2]},
        "created_at": score.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def test_the_same_score_again_is_a_no_op(family: Registry) -> None:
    """Recording a measurement twice keeps one, also where conditions are absent."""
    first = family.add_score("merged", "mme", 0.1)
    assert family.add_score("merged", "mme", 0.1, filter="") == first
    assert len(family.scores("merged")) == 1


def test_missing_facts_of_a_score_are_filled_in(family: Registry) -> None:
    """The same value with its error bar completes the record."""
    family.add_score("merged", "mme", 0.1)
    assert family.add_score("merged", "mme", 0.1, n=10, stderr=0.01).n == 10
    (score,) = family.scores("merged")
    assert (score.n, score.stderr) == (10, 0.01)


@pytest.mark.parametrize("change", [{"value": 0.2}, {"n": 20}, {"partial": True}])
def test_another_value_needs_to_be_asked_for(family: Registry, change: dict[str, Any]) -> None:
    """A different result under the same conditions is an error unless it replaces the old one."""
    said: dict[str, Any] = {"value": 0.1, "n": 10, "stderr": 0.5, "details": {"a": 1}}
    first = family.add_score("merged", "mme", **said)
    with pytest.raises(RegistryError, match=r"'merged' already has 0\.1 on 'mme' \(score\)"):
        family.add_score("merged", "mme", **{**said, **change})
    assert family.scores("merged") == [first]
    family.add_score("merged", "mme", **{"value": 0.1, **change}, replace=True)
    (score,) = family.scores("merged")
    assert (score.stderr, score.details) == (None, None)
    assert {field: getattr(score, field) for field in change} == change


@pytest.mark.parametrize(
    "condition",
    [
        {"metric": "acc"},
        {"n_shot": 5},
        {"filter": "strict"},
        {"split": "val"},
        {"evaluator": "lm-eval"},
        {"evaluator_version": "1"},
        {"source": "paper"},
    ],
)
def test_each_condition_makes_another_score(family: Registry, condition: dict[str, Any]) -> None:
    """Scores that differ in any condition stand side by side."""
    family.add_score("merged", "mme", 1.0)
    family.add_score("merged", "mme", 2.0, **condition)
    assert sorted(score.value for score in family.scores("merged")) == [1.0, 2.0]


def test_scores_are_ordered_by_benchmark_and_metric(family: Registry) -> None:
    """The list reads like a table, whatever order it was recorded in."""
    for benchmark, metric in (("vqa", "em"), ("mme", "score"), ("vqa", "acc")):
        family.add_score("merged", benchmark, 1.0, metric=metric)
    listed = [(score.benchmark, score.metric) for score in family.scores("merged")]
    assert listed == [("mme", "score"), ("vqa", "acc"), ("vqa", "em")]
    assert family.scores("base") == []


def test_an_unknown_benchmark_is_created_with_its_direction(family: Registry) -> None:
    """The first score says in which direction a benchmark improves."""
    assert not family.add_score("base", "perplexity", 5, higher_is_better=False).higher_is_better
    assert not family.add_score("merged", "perplexity", 6).higher_is_better
    assert family.add_score("merged", "mme", 6).higher_is_better
    assert [(b.name, b.higher_is_better) for b in family.benchmarks()] == [
        ("mme", True),
        ("perplexity", False),
    ]


def test_a_benchmark_keeps_its_direction(family: Registry) -> None:
    """Saying the other direction later is an error, and nothing is recorded."""
    family.add_score("base", "perplexity", 5, higher_is_better=False)
    with pytest.raises(RegistryError, match="recorded with lower scores being better"):
        family.add_score("merged", "perplexity", 6, higher_is_better=True)
    assert family.scores("merged") == []


def test_a_benchmark_can_be_described_later(family: Registry) -> None:
    """Missing facts of a benchmark are filled in, others must agree."""
    family.add_score("merged", "mme", 1.0)
    described = family.add_benchmark("mme", ability="vision", description="yes or no")
    assert described.to_json() == {
        "name": "mme",
        "higher_is_better": True,
        "ability": "vision",
        "metric": None,
        "unit": None,
        "description": "yes or no",
    }
    with pytest.raises(RegistryError, match="ability 'vision', not 'audio'"):
        family.add_score("merged", "mme", 1.0, ability="audio")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"value": float("nan")}, "score nan is not finite"),
        ({"value": float("-inf")}, "score -inf is not finite"),
        ({"value": 10**400}, "is not a number"),
        ({"value": "good"}, "score 'good' is not a number"),
        ({"stderr": float("inf")}, "stderr inf is not finite"),
        ({"stderr": -0.1}, "stderr -0.1 is negative"),
        ({"n": -1}, "n -1 is out of range"),
        ({"n": 2**63}, "is out of range"),
        ({"n": 1.5}, "n 1.5 is not a whole number"),
        ({"metric": ""}, "a metric cannot be empty"),
        ({"source": "\ud800"}, "source is not valid Unicode"),
        ({"split": "a\0"}, "split holds a NUL character"),
        ({"details": {"a": float("nan")}}, "details cannot be stored as JSON"),
        ({"details": {"a": object()}}, "details cannot be stored as JSON"),
    ],
)
def test_what_is_no_measurement_is_refused(
    family: Registry, said: dict[str, Any], message: str
) -> None:
    """A failed measurement is never stored as a number."""
    with pytest.raises(RegistryError, match=message):
        family.add_score("merged", "mme", **{"value": 1.0, **said})
    assert family.scores("merged") == []


def test_a_score_needs_a_checkpoint(family: Registry) -> None:
    """A misspelt checkpoint creates neither a score nor a benchmark."""
    with pytest.raises(RegistryError, match="did you mean 'merged'"):
        family.add_score("mergd", "mme", 1.0)
    assert family.benchmarks() == []


def test_another_setup_is_another_measurement(family: Registry) -> None:
    """Seeds, limits and templates tell scores apart; the order of their names does not."""
    family.add_score("merged", "mme", 1.0)
    family.add_score("merged", "mme", 2.0, setup={"seed": 1, "limit": 10}, partial=True)
    family.add_score("merged", "mme", 3.0, setup={"seed": 2})
    assert family.add_score("merged", "mme", 2.0, setup={"limit": 10, "seed": 1}, partial=True)
    assert [score.value for score in family.scores("merged")] == [1.0, 2.0, 3.0]
    with pytest.raises(RegistryError, match="already has 3"):
        family.add_score("merged", "mme", 4.0, setup={"seed": 2})
    with pytest.raises(RegistryError, match="setup cannot be stored"):
        family.add_score("merged", "mme", 4.0, setup={"seed": float("nan")})


def test_scores_measured_alike_are_compared(family: Registry) -> None:
    """Of several scores of a benchmark those with one setup are paired, whole ones before parts."""
    for name, shift in (("base", 0.0), ("merged", 1.0)):
        family.add_score(name, "mme", 10.0 + shift)
        family.add_score(name, "mme", 20.0 + shift, setup={"chat_template": "a"})
        family.add_score(name, "mme", 90.0, setup={"limit": 2}, partial=True)
    (row,) = family.compare("merged", against="base").rows
    assert (row.reference, row.values["merged"].value) == (20.0, 21.0)
    assert not row.values["merged"].partial


def test_an_analysis_is_recorded_once_for_a_setup(family: Registry) -> None:
    """The same analysis again replaces its result, and leaves an event only if it differs."""
    family.add_analysis("merged", "shift", {"delta_avg": 0.5}, against="base", setup={"n": 1})
    family.add_analysis("merged", "shift", {"delta_avg": 0.5}, against="base", setup={"n": 1})
    before = len(family.events("merged"))
    family.add_analysis("merged", "shift", {"delta_avg": 0.25}, against="base", setup={"n": 1})
    family.add_analysis("merged", "shift", {"delta_avg": 1.0}, against="base", setup={"n": 2})
    newest, other = family.analyses("merged", "shift")
    assert (newest.result, newest.setup) == ({"delta_avg": 1.0}, {"n": 2})
    assert (other.result, other.against) == ({"delta_avg": 0.25}, "base")
    assert len(family.events("merged")) == before + 2
    assert family.analyses("merged", "heads") == []
    rows = family.sql("SELECT checkpoint, kind, against FROM v_analyses").rows
    assert [tuple(row) for row in rows] == [("merged", "shift", "base")] * 2
