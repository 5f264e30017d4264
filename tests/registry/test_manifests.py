"""Manifests: what they declare is applied whole or not at all, twice is once, and it comes back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Parent, Registry, Role
from omnireg.registry.declare import cycles
from omnireg.registry.declare.manifest import (
    BenchmarkItem,
    CheckpointItem,
    ParentItem,
    ScoreItem,
    TableItem,
    schema,
)
from registry.conftest import A
from tests_support import Run

FAMILY = """\
omnireg: 1
benchmarks:
  - {name: MMLU, metric: accuracy, unit: "%", ability: knowledge}
  - {name: HarmBench, metric: ASR, higher_is_better: false, ability: safety}
checkpoints:
  - {name: base, kind: base, aliases: [b]}
  - name: vision
    kind: finetuned
    modalities: [image, video]
    source: https://example.org/vision
    notes: A note.
    details: {training_data: 8.5 M images}
    parents: [{name: base, role: finetuned_from}]
  - name: merged
    kind: merged
    strategy: average
    parents: [{name: base, weight: 0.25}, {name: vision, weight: 0.75}]
tables:
  - source: Table 1
    columns: [MMLU, HarmBench, {benchmark: MMLU, metric: macro, n_shot: 5}]
    rows:
      base: [66.2, 15.9, null]
      vision: [66.5, null, 60]
scores:
  - {checkpoint: b, benchmark: MMLU, value: 66.0, n: 100, stderr: 0.5, split: dev}
"""


@pytest.fixture
def declare(tmp_path: Path, registry: Registry) -> "Declare":
    """Return what writes a manifest and applies it."""
    return Declare(tmp_path, registry)


class Declare:
    """Writes manifests and applies them."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry

    def write(self, text: str, name: str = "m.yaml") -> Path:
        """Write a manifest."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def __call__(self, text: str, name: str = "m.yaml", *, dry_run: bool = False) -> "dict":  # type: ignore[type-arg]
        """Apply a manifest and return the counts."""
        changes = self.registry.apply(self.write(text, name), dry_run=dry_run)
        return {action: dict(kinds) for action, kinds in changes.counts.items()}

    def refused(self, text: str, name: str = "m.yaml") -> str:
        """Return why a manifest is refused, after making sure that it changed nothing."""
        known = list(self.registry.items()) if self.registry.exists() else []
        events = len(self.registry.events(limit=None)) if known else 0
        with pytest.raises(RegistryError) as caught:
            self(text, name)
        if known:
            assert list(self.registry.items()) == known
            assert len(self.registry.events(limit=None)) == events
        return str(caught.value)


def test_everything_declared_is_recorded(declare: Declare, registry: Registry) -> None:
    """Checkpoints with parents, aliases, facts; tables as scores with their conditions."""
    made = {"create": {"benchmark": 2, "checkpoint": 3, "score": 5}}
    assert declare(FAMILY) == made
    vision = registry.find("vision")
    assert vision.modalities == ("image", "video")
    assert vision.details == {"training_data": "8.5 M images"}
    assert (vision.source, vision.notes) == ("https://example.org/vision", "A note.")
    assert [(p.name, p.role) for p in vision.parents] == [("base", Role.FINETUNED_FROM)]
    assert registry.find("b").name == "base"
    assert len([e for e in registry.events("base") if str(e.subject_type) == "score"]) == 3
    merged = registry.find("merged")
    assert [(p.name, p.weight) for p in merged.parents] == [("base", 0.25), ("vision", 0.75)]
    by_metric = {(s.benchmark, s.metric): s for s in registry.scores("vision")}
    assert set(by_metric) == {("MMLU", "accuracy"), ("MMLU", "macro")}
    assert by_metric["MMLU", "macro"].n_shot == 5
    assert by_metric["MMLU", "accuracy"].source == "Table 1"
    assert not next(b for b in registry.benchmarks() if b.name == "HarmBench").higher_is_better


def test_twice_is_once(declare: Declare) -> None:
    """The second time nothing changes, and no event says otherwise."""
    declare(FAMILY)
    assert declare(FAMILY) == {}


def test_changes_are_told_one_by_one(declare: Declare, registry: Registry) -> None:
    """Every changed fact, parent, alias and score is an event with the old and the new value."""
    declare(FAMILY)
    changed = (
        FAMILY.replace("aliases: [b]", "aliases: [bb]")
        .replace("[image, video]", "[image, audio]")
        .replace("strategy: average", "strategy: ties")
        .replace("{name: base, weight: 0.25}, ", "")
        .replace("0.75", "1.0")
        .replace("vision: [66.5, null, 60]", "vision: [66.7, 11.4, 60]")
        .replace("checkpoint: b,", "checkpoint: base,")
    )
    assert declare(changed) == {
        "create": {"alias": 1, "score": 1},
        "delete": {"alias": 1, "parent": 1},
        "update": {"checkpoint": 3, "parent": 1, "score": 1},
    }
    told = {
        (str(e.action), str(e.subject_type), e.subject): dict(e.details or {})
        for e in registry.events(limit=9)
    }
    assert told["update", "checkpoint", "merged"] == {"changes": {"strategy": ["average", "ties"]}}
    assert told["update", "parent", "merged"]["changes"] == {"weight": [0.75, 1.0]}
    assert told["delete", "parent", "merged"] == {"parent": "base", "role": "model"}
    assert told["create", "alias", "base"] == {"alias": "bb"}
    assert told["update", "score", "vision"]["changes"] == {"value": [66.5, 66.7]}
    assert registry.find("vision").modalities == ("audio", "image")
    assert [p.name for p in registry.find("merged").parents] == ["vision"]


def test_what_is_left_out_stays(declare: Declare, registry: Registry) -> None:
    """A field that a manifest does not mention keeps its value, lists included."""
    declare(FAMILY)
    few = "omnireg: 1\ncheckpoints:\n  - {name: vision, notes: Another.}\n"
    assert declare(few) == {"update": {"checkpoint": 1}}
    vision = registry.find("vision")
    assert (vision.notes, vision.modalities) == ("Another.", ("image", "video"))
    assert len(vision.parents) == 1


def test_a_dry_run_says_the_same_and_changes_nothing(declare: Declare, registry: Registry) -> None:
    """Also where there is no registry yet: it is not made."""
    assert declare(FAMILY, dry_run=True)["create"] == {
        "benchmark": 2, "checkpoint": 3, "score": 5,
    }  # fmt: skip
    if registry.where.endswith(".db"):
        assert not Path(registry.where).exists()
    declare(FAMILY)
    before = list(registry.items())
    assert declare(FAMILY.replace("66.2", "66.9"), dry_run=True) == {"update": {"score": 1}}
    assert list(registry.items()) == before


def test_an_export_is_a_fixed_point(declare: Declare, registry: Registry, tmp_path: Path) -> None:
    """Exported, applied elsewhere and exported again: the same text, YAML and JSON Lines."""
    declare(FAMILY)
    run = registry.start_run(
        "merged", out="o", recipe_text="a\nb\n", recipe_digest="d", strategy="average",
        engine="stream", seed=3, parameters={"x": [1, None]}, versions={"torch": "2"},
    )  # fmt: skip
    registry.finish_run(run, name="merged", kind="merged", fingerprint=A)
    registry.start_run(
        "later", out="o", recipe_text="", recipe_digest="d", strategy="s", engine="stream"
    )
    for name in ("e.yaml", "e.jsonl"):
        first, again = tmp_path / f"first-{name}", tmp_path / f"again-{name}"
        registry.export(first)
        with Registry(tmp_path / f"{name}.db") as other:
            other.apply(first)
            assert not other.apply(first).total
            other.export(again)
            assert [r.to_json() | {"id": 0} for r in other.runs()] == [
                r.to_json() | {"id": 0} for r in registry.runs()
            ]
        assert again.read_text("utf-8") == first.read_text("utf-8")
        assert not registry.apply(first).total


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("kind: merged", "kind: mergd"), "m.yaml:15: kind: 'mergd' is none of base, finetuned,"
         " merged, package (did you mean 'merged'?)"),
        (("strategy:", "stratgy:"), "m.yaml:16: unknown key 'stratgy' (did you mean 'strategy'?)"),
        (("role: finetuned_from", "rolle: base"), "m.yaml:13: parents.0: unknown key 'rolle'"
         " (did you mean 'role'?)"),
        (("checkpoints:", "checkpoint:"), "m.yaml:5: unknown key 'checkpoint' (did you mean"),
        (("name: base, weight", "name: bas, weight"), "m.yaml:14: parent 'bas' is neither declared"
         " nor recorded (did you mean 'base'?)"),
        (("[MMLU, HarmBench,", "[MMLU, HarmBnch,"), "m.yaml:22: unknown benchmark 'HarmBnch'"
         " (did you mean 'HarmBench'?)"),
        (("vision: [66.5", "visoin: [66.5"), "m.yaml:23: no checkpoint 'visoin' (did you mean"
         " 'vision'?)"),
        (("base: [66.2, 15.9, null]", "base: [66.2]"), "m.yaml:22: 1 values for 3 columns"),
        (("66.2", ".nan"), "m.yaml:22: rows.base.0: Input should be a finite number"),
        (("value: 66.0", "value: x"), "m.yaml:25: value: Input should be a valid number"),
        (("value: 66.0, ", ""), "m.yaml:25: the score has no value"),
        (("omnireg: 1", "omnireg: 2"), "m.yaml:1: format version 2 is not known"),
        (("omnireg: 1\n", ""), "m.yaml is no manifest, since it names no format version"),
        (("kind: base, aliases", "aliases"), "m.yaml:6: checkpoint 'base' is new and has no kind"),
        (("aliases: [b]", "aliases: [vision]"), "alias 'vision' is the name of a checkpoint"),
        (("notes: A note.", "notes: A\n    notes: B"), "m.yaml:12: no valid YAML: the key 'notes'"
         " stands here twice"),
        (("notes: A note.", "notes: [A"), "m.yaml:12: no valid YAML"),
        (("{name: base, weight: 0.25}", "{name: vision, weight: 0.25}"), "m.yaml:14: 'vision' is"
         " listed twice as model of 'merged'"),
        (("{name: base, weight: 0.25}", "{name: merged}"), "'merged' cannot be its own parent"),
        (("kind: base,", "kind: base, fingerprint: xyz,"), "m.yaml:6: fingerprint: fingerprint"
         " 'xyz' is not 8 to 64 hexadecimal digits"),
        (("kind: base,", 'name: "a\\u0000b",'), "no valid YAML"),
        (("omnireg: 1\n", "omnireg: 1\n? [a]\n: 1\n"), "a key is one word"),
        (("notes: A note.", "? {a: b}\n    : A note."), "a key is one word"),
        (("notes: A note.", "notes: " + "[" * 5000), "is nested too deeply"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(
    declare: Declare, edit: tuple[str, str], said: str
) -> None:
    """Nothing of such a file is applied."""
    assert edit[0] in FAMILY
    message = declare.refused(FAMILY.replace(*edit))
    assert said in message.replace(str(declare.folder) + os.sep, "")
    assert "\n" not in message


def test_two_values_for_one_score_are_refused(declare: Declare, registry: Registry) -> None:
    """In one transaction; the same value twice is one score; another source is another score."""
    score = "  - {checkpoint: base, benchmark: MMLU, value: 66.2, source: Table 1}\n"
    assert declare(FAMILY + score)["create"]["score"] == 5
    other = score.replace("66.2", "67")
    for text in (FAMILY + other, FAMILY + score + other):
        message = declare.refused(text)
        assert "'base' has 67.0 on 'MMLU' (accuracy), but 66.2 under the same" in message
        assert "m.yaml:22" in message or "m.yaml:26" in message
    assert declare(FAMILY + other.replace("Table 1", "Table 2")) == {"create": {"score": 1}}
    assert len(registry.scores("base")) == 4


def test_fresh_files_that_contradict_themselves_leave_nothing(declare: Declare) -> None:
    """Two values in the very first apply."""
    score = "  - {checkpoint: base, benchmark: MMLU, value: 67, source: Table 1}\n"
    assert "but 66.2 under the same conditions" in declare.refused(FAMILY + score)
    assert not declare.registry.exists() or not list(declare.registry.items())


def test_a_checkpoint_or_benchmark_declared_in_two_ways_is_refused(declare: Declare) -> None:
    """Both places are named."""
    again = "omnireg: 1\ncheckpoints:\n  - {name: base, kind: base}\n"
    first, second = declare.write(FAMILY), declare.write(again, "n.yaml")
    with pytest.raises(RegistryError, match=r"n\.yaml:3: checkpoint 'base' is declared at .*:6"):
        declare.registry.apply(first, second)
    other = "omnireg: 1\nbenchmarks:\n  - {name: MMLU, unit: points}\n"
    second = declare.write(other, "n.yaml")
    with pytest.raises(RegistryError, match=r"n\.yaml:3: benchmark 'MMLU' .*another way at .*:3"):
        declare.registry.apply(first, second)


def test_a_knot_is_refused_with_its_names(declare: Declare) -> None:
    """Within one file, and through what is recorded."""
    knot = FAMILY.replace("kind: base, aliases", "kind: base, parents: [{name: merged}], aliases")
    assert "would be their own ancestors" in declare.refused(knot)
    declare(FAMILY)
    closing = "omnireg: 1\ncheckpoints:\n  - {name: base, parents: [{name: vision}]}\n"
    message = declare.refused(closing)
    assert "m.yaml:3: checkpoints would be their own ancestors" in message
    assert "'base'" in message
    assert "'vision'" in message


def test_knots_in_large_graphs_are_found() -> None:
    """A long chain has none; closing it makes one of all its nodes."""
    chain = [(i + 1, i) for i in range(500)]
    assert cycles.find(chain) == []
    assert cycles.find([]) == []
    assert sorted(cycles.find([*chain, (200, 499), (7, 1000)])) == list(range(200, 500))


def test_absent_removes(declare: Declare, registry: Registry) -> None:
    """Scores, checkpoints with all that is theirs, benchmarks; never what others hang on."""
    declare(FAMILY)
    gone = "omnireg: 1\ncheckpoints:\n  - {name: vision, absent: true}\n"
    assert "'vision' is a parent of 'merged': remove that one too" in declare.refused(gone)
    assert "'MMLU' has 4 scores" in declare.refused(
        "omnireg: 1\nbenchmarks:\n  - {name: MMLU, absent: true}\n"
    )
    assert declare(gone + "  - {name: merged, absent: true}\n") == {"delete": {"checkpoint": 2}}
    score = "{checkpoint: base, benchmark: HarmBench, source: Table 1, absent: true}"
    both = f"omnireg: 1\nbenchmarks: [{{name: HarmBench, absent: true}}]\nscores:\n  - {score}\n"
    assert declare(both) == {"delete": {"benchmark": 1, "score": 1}}
    assert [c.name for c in registry.checkpoints()] == ["base"]
    assert [b.name for b in registry.benchmarks()] == ["MMLU"]
    assert declare(gone) == {}


def test_json_lines_are_the_same(declare: Declare, registry: Registry) -> None:
    """One item a line, the version first; mistakes are told with their line."""
    lines = [
        {"omnireg": 1},
        {"benchmark": {"name": "MMLU", "metric": "accuracy"}},
        {"checkpoint": {"name": "x", "kind": "base"}},
        {"score": {"checkpoint": "x", "benchmark": "MMLU", "value": 1}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert declare(text, "m.jsonl") == {"create": {"benchmark": 1, "checkpoint": 1, "score": 1}}
    assert registry.scores("x")[0].metric == "accuracy"
    for bad, said in (
        (text.replace('"value"', '"valeu"'), "m.jsonl:4: score: unknown key 'valeu' (did you mean"),
        (text + "{", "m.jsonl:5: Invalid JSON"),
        (text + '{"scores": []}', "m.jsonl:5: unknown key 'scores' (did you mean 'score'?)"),
        (text.split("\n", 1)[1], "no format version"),
        ("", "no format version"),
    ):
        assert said in declare.refused(bad, "m.jsonl")


def test_a_score_before_its_benchmark_gets_its_metric(declare: Declare, registry: Registry) -> None:
    """The order of a file, and of files, does not matter."""
    scores = declare.write("omnireg: 1\nscores:\n  - {checkpoint: x, benchmark: B, value: 1}\n")
    rest = declare.write(
        "omnireg: 1\nbenchmarks: [{name: B, metric: f1}]\ncheckpoints: [{name: x, kind: base}]\n",
        "n.yaml",
    )
    registry.apply(scores, rest)
    assert registry.scores("x")[0].metric == "f1"
    assert not registry.apply(rest, scores).total


def test_names_are_data(declare: Declare, registry: Registry) -> None:
    """Quotes, slashes, SQL and 300 characters are stored and shown as they are."""
    names = [
        "a'b\"c",
        "../../etc/passwd",
        "x'); DROP TABLE checkpoints; --",
        "ü中😀" * 75,
        "%s {0}",
    ]
    lines = [{"omnireg": 1}, {"benchmark": {"name": names[2]}}]
    for name in names:
        lines.append({"checkpoint": {"name": name, "kind": "base", "aliases": [name + "!"]}})
        lines.append({"score": {"checkpoint": name, "benchmark": names[2], "value": 1}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert declare(text, "m.jsonl")["create"]["checkpoint"] == len(names)
    assert declare(text, "m.jsonl") == {}
    assert {c.name for c in registry.checkpoints()} == set(names)
    assert {p.name for p in registry.leaderboard(names[2])} == set(names)
    for name in names:
        assert registry.find(name + "!").name == name


def test_an_api_registry_and_a_manifest_agree(declare: Declare, registry: Registry) -> None:
    """What calls recorded is not changed by a manifest that says the same."""
    registry.add_benchmark("MMLU", ability="knowledge", unit="%")
    registry.add_checkpoint("base", kind="base")
    registry.add_checkpoint(
        "vision", kind="finetuned", modalities=["image", "video"],
        parents=[Parent("base", "finetuned_from")],
    )  # fmt: skip
    registry.add_score("base", "MMLU", 66.2, metric="accuracy", source="Table 1")
    assert declare(FAMILY) == {
        "create": {"alias": 1, "benchmark": 1, "checkpoint": 1, "score": 4},
        "update": {"benchmark": 1, "checkpoint": 3},
    }


def test_a_killed_apply_is_nothing(tmp_path: Path) -> None:
    """SIGKILL between two statements of the transaction leaves the registry as it was."""
    path, manifest = tmp_path / "r.db", tmp_path / "m.yaml"
    manifest.write_text(FAMILY, encoding="utf-8")
    with Registry(path) as registry:
        registry.add_checkpoint("before", kind="base")
        known = list(registry.items())
        for module, step in (
            ("checkpoints.Checkpoints", "_create"),
            ("checkpoints.Checkpoints", "_set_parents"),
            ("scores.Scores", "_create"),
            ("checkpoints.Checkpoints", "remove"),
        ):
            script = dedent(f"""
                import os, signal, sys
                from omnireg.registry import Registry
                from omnireg.registry.declare import checkpoints, scores
                real = {module}.{step}
                def killing(self, *rest):
                    real(self, *rest)
                    os.kill(os.getpid(), signal.SIGKILL)
                {module}.{step} = killing
                Registry(sys.argv[1]).apply(sys.argv[2])
            """)
            done = subprocess.run([sys.executable, "-c", script, path, manifest], check=False)
            assert done.returncode == -signal.SIGKILL
            assert list(registry.items()) == known
            assert registry.check() == []
        registry.apply(manifest)
        assert len(registry.checkpoints()) == 4


def test_bulk(declare: Declare, registry: Registry) -> None:
    """20 000 rows with deep chains: applied, unchanged the second time, a hundred listed."""
    lines = [json.dumps({"omnireg": 1}), json.dumps({"benchmark": {"name": "B"}})]
    for number in range(4000):
        parents = [{"name": f"c{number // 2}"}] if number else []
        if number > 10:
            parents.append({"name": f"c{number - 7}", "role": "base"})
        item = {"name": f"c{number}", "kind": "merged" if number else "base", "parents": parents}
        lines.append(json.dumps({"checkpoint": item}))
        for shot in range(2):
            score = {"checkpoint": f"c{number}", "benchmark": "B", "value": number, "n_shot": shot}
            lines.append(json.dumps({"score": score}))
    path = declare.write("\n".join(lines), "bulk.jsonl")
    changes = registry.apply(path)
    assert changes.counts == {"create": {"benchmark": 1, "checkpoint": 4000, "score": 8000}}
    assert len(changes.listed) == 100
    assert not registry.apply(path).total
    assert registry.sql("SELECT count(*) FROM v_parents").rows == ((3999 + 3989,),)
    assert registry.check() == []
    assert [p.name for p in registry.leaderboard("B", limit=3)] == ["c3999", "c3998", "c3997"]


def test_the_command_line(tmp_path: Path, run: Run) -> None:
    """Plan, apply, export; coloured signs for people, one JSON document for scripts."""
    path = tmp_path / "m.yaml"
    path.write_text(FAMILY, encoding="utf-8")
    planned = run("apply", path, "--dry-run")
    assert "+ checkpoint base: kind base" in planned.out
    assert "+2 benchmarks, +3 checkpoints, +5 scores" in planned.out
    assert "omnireg apply" in planned.err
    assert json.loads(run("apply", path, "--json").out)["counts"]["create"]["score"] == 5
    assert run("apply", path).out == "no changes\n"
    exported = run("export")
    assert "name: vision" in exported.out
    assert json.loads(run("export", "--json").out)["omnireg"] == 1
    assert run("export", "--out", tmp_path / "no" / "e.yaml").code == 1
    missing = run("apply", tmp_path / "none.yaml")
    assert missing.code == 1
    assert "cannot read" in missing.err
    events = json.loads(run("events", "vision", "--json").out)
    assert events[-1]["action"] == "create"
    assert "checkpoint vision" in run("events", "vision").out


def test_the_schema_is_one_of_json_schema() -> None:
    """Editors can check a manifest by it: sections, and a line of JSON Lines."""
    found = schema()
    assert found["required"] == ["omnireg"]
    assert {"Line", "CheckpointItem", "ScoreItem", "TableItem"} <= set(found["$defs"])
    assert found["additionalProperties"] is False


def test_the_reference_has_every_key() -> None:
    """The page of the format leaves out no key of what can be declared."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "manifest.md").read_text("utf-8")
    for item in (BenchmarkItem, CheckpointItem, ParentItem, ScoreItem, TableItem):
        assert not [key for key in item.model_fields if f"`{key}`" not in page]
