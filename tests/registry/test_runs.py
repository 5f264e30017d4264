"""Runs: begun before the work, ended with a checkpoint or with a reason."""

from pathlib import Path
from typing import Any

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Kind, Parent, Registry, RunStatus

A, B, C, D, E = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)


def _begin(registry: Registry, name: str = "new", **more: Any) -> int:
    said: dict[str, Any] = {
        "out": Path("out/new"),
        "recipe_text": "merge_method: ties\n",
        "recipe_digest": "12" * 32,
        "strategy": "ties",
        "engine": "stream",
        **more,
    }
    return registry.start_run(name, **said)


def test_a_run_exists_before_its_work(registry: Registry) -> None:
    """Starting a run records all it will do, and that nothing is done yet."""
    number = _begin(
        registry,
        strategy_distribution="omnireg",
        strategy_version="1.0",
        seed=2**62,
        parameters={"density": 0.2},
        versions={"torch": "2.6"},
        machine="box",
    )
    run = registry.run(number)
    assert run.to_json() == {
        "id": number,
        "status": "running",
        "name": "new",
        "checkpoint": None,
        "out": "out/new",
        "recipe_text": "merge_method: ties\n",
        "recipe_digest": "12" * 32,
        "strategy": "ties",
        "strategy_distribution": "omnireg",
        "strategy_version": "1.0",
        "engine": "stream",
        "seed": 2**62,
        "parameters": {"density": 0.2},
        "versions": {"torch": "2.6"},
        "machine": "box",
        "started_at": run.started_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "finished_at": None,
        "error": None,
    }
    assert registry.get("new") is None


def test_a_finished_run_has_its_checkpoint(family: Registry) -> None:
    """Finishing records checkpoint, parents and end together, and takes the run's strategy."""
    number = _begin(family)
    made = family.finish_run(
        number,
        name="new",
        kind="merged",
        fingerprint=E,
        source="out/new",
        modalities=["vision"],
        parents=[Parent("base", "base"), Parent("vision", "model", 0.5)],
    )
    assert (made.strategy, made.fingerprint) == ("ties", E)
    run = family.run_of("new")
    assert run is not None
    assert (run.id, run.status, run.checkpoint) == (number, RunStatus.DONE, "new")
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at
    assert family.run_of("base") is None


def test_unknown_parents_are_created(family: Registry) -> None:
    """Parents nobody recorded get the kind that their role suggests, until somebody says."""
    family.finish_run(
        _begin(family),
        name="new",
        kind="merged",
        fingerprint=E,
        parents=[
            Parent("org/text", "base", source="org/text@main", fingerprint="1" * 64),
            Parent("org/other", "model"),
            Parent("org/pack", "package"),
            Parent("org/host", "host", kind="merged"),
        ],
    )
    kinds = {parent.name: parent.kind for parent in family.find("new").parents}
    assert kinds == {
        "org/text": Kind.BASE,
        "org/other": Kind.FINETUNED,
        "org/pack": Kind.PACKAGE,
        "org/host": Kind.MERGED,
    }
    assert family.find("11111111").source == "org/text@main"
    assert family.add_checkpoint("org/other", kind="base").kind is Kind.BASE
    with pytest.raises(RegistryError, match="kind base, not merged"):
        family.add_checkpoint("org/other", kind="merged")


def test_a_parent_is_known_by_its_bytes(family: Registry) -> None:
    """A parent under an unknown name, but with known bytes, is the known checkpoint."""
    made = family.finish_run(
        _begin(family),
        name="new",
        kind="merged",
        fingerprint=E,
        parents=[Parent("./some/folder", "model", fingerprint=B)],
    )
    assert [parent.name for parent in made.parents] == ["vision"]
    assert family.get("./some/folder") is None


def test_a_recorded_parent_is_completed(family: Registry) -> None:
    """What a run learned about a parent that had no fingerprint is kept."""
    family.finish_run(
        _begin(family),
        name="new",
        kind="merged",
        fingerprint=E,
        parents=[Parent("packed", "package", fingerprint="8" * 64, source="./packed")],
    )
    packed = family.find("packed")
    assert (packed.fingerprint, packed.source) == ("8" * 64, "./packed")


def test_a_parents_name_with_other_bytes_does_not_lose_the_result(family: Registry) -> None:
    """A folder that changed since it was recorded becomes a parent of its own."""
    made = family.finish_run(
        _begin(family),
        name="new",
        kind="merged",
        fingerprint=E,
        parents=[Parent("vision", "model", fingerprint="9" * 64)],
    )
    assert [parent.name for parent in made.parents] == ["vision#99999999"]


def test_a_result_may_equal_its_parent(family: Registry) -> None:
    """A merge that changes nothing is recorded as another checkpoint with the same bytes."""
    for attempt in ("first", "again"):
        made = family.finish_run(
            _begin(family, attempt),
            name="new",
            kind="merged",
            fingerprint="7" * 64,
            parents=[Parent("./elsewhere", "model", fingerprint="7" * 64)],
        )
        assert [parent.name for parent in made.parents] == ["./elsewhere"]


def test_finishing_is_all_or_nothing(family: Registry) -> None:
    """A result that contradicts the record leaves no trace except the open run."""
    number = _begin(family)
    with pytest.raises(RegistryError, match="'merged' is recorded with fingerprint"):
        family.finish_run(
            number, name="merged", kind="merged", fingerprint=E, parents=[Parent("stranger")]
        )
    assert family.get("stranger") is None
    assert family.run(number).status is RunStatus.RUNNING
    assert family.fail_run(number, "name taken").status is RunStatus.FAILED


def test_a_run_ends_once(family: Registry) -> None:
    """A run that is done stays done, and one that failed keeps its first reason."""
    done, failed = _begin(family), _begin(family)
    family.finish_run(done, name="new", kind="merged", fingerprint=E)
    family.fail_run(failed, "disk \0full")
    assert family.fail_run(failed, "later").error == "disk full"
    for number in (done, failed):
        with pytest.raises(RegistryError, match=f"run {number} is already"):
            family.finish_run(number, name="new", kind="merged", fingerprint=E)
    with pytest.raises(RegistryError, match="is done and cannot fail"):
        family.fail_run(done, "too late")
    with pytest.raises(RegistryError, match="no run 99"):
        family.fail_run(99, "never was")


def test_runs_are_listed_newest_first(family: Registry) -> None:
    """The list can be narrowed to a status and to a number of runs."""
    numbers = [_begin(family) for _ in range(3)]
    family.fail_run(numbers[1], "no")
    assert [run.id for run in family.runs()] == numbers[::-1]
    assert [run.id for run in family.runs("failed")] == [numbers[1]]
    assert [run.id for run in family.runs(RunStatus.RUNNING, limit=1)] == [numbers[2]]
    with pytest.raises(RegistryError, match="unknown status 'finished'"):
        family.runs("finished")


def test_a_name_is_free_where_nothing_contradicts_it(family: Registry) -> None:
    """Unknown names, unknown bytes, equal bytes and the same recipe are all free."""
    family.check_name_free("new")
    family.check_name_free("packed")
    family.check_name_free("merged", fingerprint=D)
    family.finish_run(_begin(family), name="new", kind="merged", fingerprint=E)
    family.check_name_free("new", kind="merged", recipe_digest="12" * 32)


def test_a_taken_name_is_refused_before_the_work(family: Registry) -> None:
    """A name with other bytes, of another kind or for another checkpoint is taken."""
    family.add_alias("merged", "best")
    with pytest.raises(RegistryError, match="'merged' is taken by a checkpoint with other bytes"):
        family.check_name_free("merged", recipe_digest="12" * 32)
    with pytest.raises(RegistryError, match="'packed' is recorded as package, not merged"):
        family.check_name_free("packed", kind="merged")
    with pytest.raises(RegistryError, match="'best' is an alias of 'merged'"):
        family.check_name_free("best")


def test_every_name_is_free_in_a_registry_not_made_yet(registry: Registry, path: Path) -> None:
    """Asking about a name creates nothing, and still refuses what is no name."""
    registry.check_name_free("new")
    with pytest.raises(RegistryError, match="cannot be empty"):
        registry.check_name_free("")
    assert not path.exists()


def test_parameters_must_be_json(registry: Registry) -> None:
    """What cannot be stored is refused before the work begins."""
    with pytest.raises(RegistryError, match="parameters cannot be stored as JSON"):
        _begin(registry, parameters={"weight": float("nan")})
    with pytest.raises(RegistryError, match="seed -1 is out of range"):
        _begin(registry, seed=-1)


def test_a_finished_run_ends_those_that_were_killed_at_its_work(registry: Registry) -> None:
    """Other folders and other machines are other work."""
    killed = _begin(registry)
    elsewhere = [_begin(registry, out="out/other"), _begin(registry, machine="another")]
    number = _begin(registry)
    registry.finish_run(number, name="new", kind="merged", fingerprint="ab" * 32)
    assert registry.run(killed).status is RunStatus.FAILED
    assert registry.run(killed).error == f"interrupted; run {number} finished its work"
    assert [registry.run(n).status for n in elsewhere] == [RunStatus.RUNNING] * 2
