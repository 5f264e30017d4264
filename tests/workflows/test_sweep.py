"""A grid of merges, and the page on one of them."""

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import omnireg
from omnireg.demo import questions, story
from omnireg.engine import running
from omnireg.engine.steps import finish, side_by_side
from omnireg.errors import ConfigError, EvaluationError, MergeError
from omnireg.merging import Job, merge_together
from omnireg.package import fingerprint_of
from omnireg.recipe import Recipe, parse_recipe
from omnireg.registry import Registry
from omnireg.workflows.grid import with_parameters
from omnireg.workflows.pages import Block, Code, Heading, Table, Text, as_html, as_markdown
from omnireg.workflows.reporting import report
from omnireg.workflows.sweeping import Measuring, preview, sweep
from omnireg.workflows.trials import Notebook, Trial
from tests_support import Run

SENSES = story.SENSES
MODELS = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in SENSES)
TEXT = f"merge_method: delta_weighted\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{MODELS}"
HOST = f"{TEXT}omnireg: {{output: host, host: {story.FAMILY / 'image'}}}\n"
GRID = {"alpha0": [0.1, 0.5, 0.9]}


def alpha_of(folder: Path) -> float:
    """Return the α₀ of a sweep's folder by its name."""
    return float(folder.name.partition("=")[2])


# Merging side by side


def jobs(folder: Path, texts: dict[str, str]) -> list[Job]:
    """Return jobs by name."""
    return [Job(parse_recipe(text), folder / name, name) for name, text in texts.items()]


def test_merges_side_by_side_are_the_merges_alone(tmp_path: Path) -> None:
    """Bytes, records and parents are the same; other methods and shapes may be mixed."""
    texts = {
        "a": f"{TEXT}parameters: {{alpha0: 0.2}}\n",
        "b": f"{TEXT}parameters: {{alpha0: 0.7, scope: model}}\n",
        "c": HOST,
        "d": TEXT.replace("delta_weighted", "mmer") + "omnireg: {output: package}\n",
    }
    told: list[tuple[str, int, int, str]] = []
    book = Registry(tmp_path / "together.db")
    receipts = merge_together(
        jobs(tmp_path / "together", texts), registry=book,
        progress=lambda *said: told.append(said),
    )  # fmt: skip
    alone = Registry(tmp_path / "alone.db")
    for receipt, (name, text) in zip(receipts, texts.items(), strict=True):
        own = omnireg.merge(text, tmp_path / "alone" / name, registry=alone)
        assert (receipt.name, receipt.fingerprint) == (name, own.fingerprint)
        assert fingerprint_of(tmp_path / "together" / name) == own.fingerprint
        assert book.find(name).parents == alone.find(name).parents
    written = [(done, total) for stage, done, total, _ in told if stage == "writing"]
    assert written == sorted(written)
    assert [run.status for run in book.runs()] == ["done"] * 4


def test_steps_are_taken_in_turn() -> None:
    """One step of each, until all are done; results in order."""
    seen: list[str] = []

    def counting(name: str, count: int) -> Any:
        for number in range(count):
            seen.append(f"{name}{number}")
            yield
        return name

    assert side_by_side([counting("a", 2), counting("b", 3), counting("c", 0)]) == ["a", "b", "c"]
    assert seen == ["a0", "b0", "a1", "b1", "b2"]
    assert finish(counting("d", 2)) == "d"


def test_inputs_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of one merge is read next to the same tensor of the others, not after all."""
    from omnireg.engine import tensors

    order: list[tuple[str, str]] = []
    chunk = tensors.Job.chunk

    def looked(self: Any, number: int) -> Any:
        order.append((self.settings.plan.recipe.parameters["alpha0"], self.merged.name))
        return chunk(self, number)

    monkeypatch.setattr(tensors.Job, "chunk", looked)
    texts = {str(a): f"{TEXT}parameters: {{alpha0: {a}}}\n" for a in (0.1, 0.2, 0.3)}
    merge_together(jobs(tmp_path, texts), threads=1, record=False)
    names = [name for _, name in order]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    spread = [max(found) - min(found) for found in places.values()]
    # each merge works a few chunks ahead: far less than all tensors of the two others
    assert max(spread) < 40
    assert len(places) == 51


def test_one_failure_stops_all_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others had finished is there to go on with; nothing half-made appears."""
    texts = {str(a): f"{TEXT}parameters: {{alpha0: {a}}}\n" for a in (0.1, 0.2)}
    complete = running._complete

    def failing(planned: Any, output: Any, folder: Path, how: Any, digests: Any) -> None:
        if folder.name.startswith("0.1"):
            raise OSError(28, "No space left on device")
        complete(planned, output, folder, how, digests)

    monkeypatch.setattr(running, "_complete", failing)
    book = Registry(tmp_path / "r.db")
    with pytest.raises(MergeError, match="No space left"):
        merge_together(jobs(tmp_path, texts), registry=book)
    assert not (tmp_path / "0.1").exists()
    assert {run.status for run in book.runs()} <= {"failed", "done"}
    monkeypatch.setattr(running, "_complete", complete)
    left = [job for job in jobs(tmp_path, texts) if not job.out.exists()]
    receipts = merge_together(left, registry=book)
    assert all(receipt.resumed_shards for receipt in receipts if receipt.name == "0.1")


# Sweeping


def test_a_sweep_merges_scores_records_and_ranks(tmp_path: Path) -> None:
    """By a function; the best first, every point with its run and parents."""
    book = Registry(tmp_path / "r.db")
    measuring = Measuring(score=lambda folder: 1 - abs(alpha_of(folder) - 0.5), name="mine")
    found = sweep(TEXT, GRID, tmp_path / "s", measuring=measuring, book=book)
    assert [p.point["alpha0"] for p in found.points] == [0.5, 0.1, 0.9]
    assert [p.mean for p in found.points] == pytest.approx([1, 0.6, 0.6])
    for each in found.points:
        assert each.name == f"s/alpha0={each.point['alpha0']}"
        record = book.find(each.name)
        assert record.fingerprint == each.fingerprint == fingerprint_of(each.out)
        assert {p.name for p in record.parents} == {"base", *SENSES}
        assert book.run_of(each.name) is not None
        (score,) = book.scores(each.name)
        assert (score.benchmark, score.value) == ("mine", each.mean)
    assert book.leaderboard("mine")[0].name == "s/alpha0=0.5"


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """Finished points are neither merged nor scored again; other scores are other trials."""
    asked: list[float] = []

    def score(folder: Path) -> float:
        asked.append(alpha_of(folder))
        if len(asked) == stop:
            raise EvaluationError("power cut")
        return alpha_of(folder)

    book, out = Registry(tmp_path / "r.db"), tmp_path / "s"
    stop = 2
    with pytest.raises(EvaluationError, match="power cut"):
        sweep(TEXT, GRID, out, measuring=Measuring(score=score, name="one"), book=book)
    stop = 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert len(before) == 3
    found = sweep(TEXT, GRID, out, measuring=Measuring(score=score, name="one"), book=book)
    assert asked == [0.1, 0.5, 0.5, 0.9]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    assert [p.point["alpha0"] for p in found.points] == [0.9, 0.5, 0.1]
    asked.clear()
    again = sweep(TEXT, GRID, out, measuring=Measuring(score=score, name="one"), book=book)
    assert again == found
    assert not asked
    sweep(TEXT, GRID, out, measuring=Measuring(score=score, name="two"), book=book)
    assert asked == [0.1, 0.5, 0.9]
    more = {"alpha0": [0.1, 0.3]}
    sweep(TEXT, more, out, measuring=Measuring(score=score, name="one"), book=book)
    assert asked[3:] == [0.3]


def test_scores_of_other_names_cannot_be_ranked(tmp_path: Path) -> None:
    """A program that says something else of a later point is stopped, and what to do is said."""
    names = iter(("image", "audio"))
    measuring = Measuring(score=lambda folder: {next(names): 0.5}, name="mine")
    with pytest.raises(EvaluationError, match=r"is about image, that of .* about audio"):
        sweep(TEXT, GRID, tmp_path / "s", measuring=measuring, book=Registry(tmp_path / "r.db"))


def test_an_interrupted_sweep_says_so_in_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reason is the name of a Python exception; running again finishes."""
    entered = running._complete

    def interrupted(planned: Any, output: Any, folder: Path, how: Any, digests: Any) -> None:
        raise KeyboardInterrupt

    book = Registry(tmp_path / "r.db")
    monkeypatch.setattr(running, "_complete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(TEXT, GRID, tmp_path / "s", book=book)
    reasons = sorted(str(run.error) for run in book.runs(status="failed"))
    assert reasons == ["interrupted", *["stopped, since a merge beside it was"] * 2]
    monkeypatch.setattr(running, "_complete", entered)
    assert len(sweep(TEXT, GRID, tmp_path / "s", book=book).points) == 3


def test_an_interrupt_says_whether_the_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep does; looking does not, whatever the checkpoint is called."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "r.yml").write_text(TEXT)
    monkeypatch.setattr(running, "_complete", interrupted)
    done = run("sweep", "r.yml", "--grid", "alpha0=0.1")
    assert done.code == 130
    assert done.err.strip() == "interrupted; the same command goes on with what is finished"
    monkeypatch.setattr(Registry, "find", interrupted)
    looked = run("show", "merge")
    assert (looked.code, looked.err.strip()) == (130, "interrupted")


def test_only_the_best_stays_if_asked(tmp_path: Path) -> None:
    """Others are removed after they were scored; the best is merged again if it is gone."""
    measuring = Measuring(score=lambda folder: -alpha_of(folder), name="low")
    book, out = Registry(tmp_path / "r.db"), tmp_path / "s"
    how: dict[str, Any] = {"measuring": measuring, "book": book, "together": 2}
    found = sweep(TEXT, GRID, out, keep="best", **how)
    assert sorted(p.name for p in out.iterdir()) == ["alpha0=0.1", "points.jsonl"]
    assert [p.to_json()["kept"] for p in found.points] == [True, False, False]
    shutil.rmtree(out / "alpha0=0.1")
    again = sweep(TEXT, GRID, out, keep="best", **how)
    assert fingerprint_of(again.points[0].out) == found.points[0].fingerprint
    sweep(TEXT, {"alpha0": [0.2]}, out, keep="none", **how)
    assert not (out / "alpha0=0.2").exists()
    whole = sweep(TEXT, GRID, out, keep="all", **how)
    assert all(p.out.is_dir() for p in whole.points)
    assert [p.fingerprint for p in whole.points] == [p.fingerprint for p in found.points]


def test_points_that_cannot_be_are_refused_before_anything(tmp_path: Path, run: Run) -> None:
    """Unknown parameters, values out of range, grids that are none, disks that are too small."""
    (tmp_path / "r.yml").write_text(TEXT)
    common = ("sweep", "r.yml", "--grid")
    for grid, said in (
        ("alpha=0.1", "did you mean 'alpha0'"), ("alpha0=0.5,1.5", "alpha0"),
        ("alpha0", "write P=a,b,c"), ("alpha0=0.1,0.1", "are the same"),
    ):  # fmt: skip
        done = run(*common, grid)
        assert done.code == 1, grid
        assert said in done.err
    assert "no such keep 'bset'" in run(*common, "alpha0=0.1", "--keep", "bset").err
    assert "no point is the best" in run(*common, "alpha0=0.1", "--keep", "best").err
    for more, said in (
        (("--tasks", "a", "--score-command", "b"), "leave one out"),
        (("--tasks", "a", "--evaluator", "nobody"), "no evaluator 'nobody'"),
        (("--keep", "best"), "no point is the best"),
        (("--score-command", "no-such-program {}"), "no program 'no-such-program'"),
        (("--score-command", " "), "no program"),
        (("--out", "r.yml"), "r.yml is in the way"),
        (("--plot", "curve"), "ends in one of .png"),
        (("--plot", "none/curve.png"), "there is no folder none"),
        (("--plot", "."), "is a folder"),
    ):
        for way in ((), ("--dry-run",)):
            refused = run(*common, "alpha0=0.1", *more, *way)
            assert refused.code == 1
            assert said in refused.err
    assert not (tmp_path / "sweep-r").exists()
    (tmp_path / "sweep-r" / "alpha0=0.1").mkdir(parents=True)
    (tmp_path / "sweep-r" / "alpha0=0.1" / "thesis.txt").write_text("precious")
    taken = run(*common, "alpha0=0.1")
    assert taken.code == 1
    assert (tmp_path / "sweep-r" / "alpha0=0.1" / "thesis.txt").exists()


def test_a_disk_without_room_is_found_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer at once where that is enough, else what to do."""
    size = preview(TEXT, GRID, tmp_path / "s").bytes_each
    assert size > 1_000_000

    def room(times: float) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=int(times * size / 0.9) + 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)

    room(3.1)
    assert preview(TEXT, GRID, tmp_path / "s", keep="all").together == 2
    assert preview(TEXT, GRID, tmp_path / "s", keep="none").together == 3
    room(2.1)
    assert preview(TEXT, GRID, tmp_path / "s", keep="best").together == 1
    with pytest.raises(ConfigError, match="--keep best"):
        preview(TEXT, GRID, tmp_path / "s", keep="all")


def test_a_sweep_from_the_command_line(run: Run, tmp_path: Path) -> None:
    """Scored by tasks and by a command; dry run, table, JSON, curve and surface."""
    (tmp_path / "r.yml").write_text(HOST)
    questions.write(tmp_path / "asked", ("image", "base"))
    files = [questions.file_of(tmp_path / "asked", sense) for sense in ("image", "base")]
    dry = run("sweep", "r.yml", "--grid", "alpha0=0.1:0.9:0.8", "--dry-run")
    assert "sweep-r/alpha0=0.9" in dry.out
    assert "2 merges, 2 at a time" in dry.out
    assert not (tmp_path / "sweep-r").exists()
    common = (
        "sweep", "r.yml", "--grid", "alpha0=0.1:0.9:0.8", "--tasks", ",".join(map(str, files)),
        "--limit", "40", "--no-chat-template", "--max-new-tokens", "8", "--dtype", "float32",
        "--plot", tmp_path / "curve.png", "--keep", "best",
    )  # fmt: skip
    done = run(*common, "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["points"]
    assert set(first["values"]) == {"tiny-image", "tiny-base"}
    assert first["errors"]["tiny-image"] > 0
    assert first["mean"] > second["mean"]
    assert (first["kept"], second["kept"]) == (True, False)
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width > 300
    assert "±" in run(*common).out
    # whoever draws the progress, scored points are not scored again
    assert len((tmp_path / "sweep-r" / "points.jsonl").read_text().splitlines()) == 2
    assert "0x" not in (tmp_path / "sweep-r" / "points.jsonl").read_text()
    scores = json.loads(run("scores", first["name"], "--json").out)
    assert {s["evaluator"] for s in scores} == {"generative"}
    assert all(s["partial"] for s in scores)
    (tmp_path / "ties.yml").write_text(TEXT.replace("delta_weighted", "omni_ties"))
    program = "import sys, json; print(json.dumps({'a': len(sys.argv[1]), 'b': 2}))"
    (tmp_path / "score.py").write_text(program)
    surface = run(
        "sweep", "ties.yml", "--grid", "density=0.2,0.5", "--grid", "lambda=0.5,1.0",
        "--score-command", f"{sys.executable} {tmp_path / 'score.py'} {{}}",
        "--plot", tmp_path / "surface.svg",
    )  # fmt: skip
    assert surface.code == 0, surface.err
    assert "density=0.2,lambda=0.5" in surface.out
    assert "<svg" in (tmp_path / "surface.svg").read_text()
    unscored = run("sweep", "ties.yml", "--grid", "density=0.3,0.4", "--out", "plain", "--json")
    shown = json.loads(unscored.out)
    assert shown["scored"] is False
    assert [p["mean"] for p in shown["points"]] == [None, None]


def test_notebooks_of_something_else_are_refused(tmp_path: Path) -> None:
    """A file that holds no trials; trials that were scored in another way do not count."""
    file = tmp_path / "t.jsonl"
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="holds no trials"):
        Notebook(file, "a")
    file.unlink()
    Notebook(file, "a").note("digest", Trial({"x": 1}, {"": 0.5}))
    assert Notebook(file, "a").recall("digest")
    assert Notebook(file, "b").recall("digest") is None


def test_half_a_line_of_a_killed_sweep_is_no_harm(tmp_path: Path) -> None:
    """It is taken off; half a line of anything else is an error, and stays."""
    file = tmp_path / "t.jsonl"
    Notebook(file, "a").note("one", Trial({"x": 1}, {"": 0.5}))
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    book = Notebook(file, "a")
    assert book.recall("one")
    book.note("two", Trial({"x": 2}, {"": 0.25}))
    again = Notebook(file, "a")
    assert again.recall("one")
    assert again.recall("two")
    file.write_text("my thesis")
    with pytest.raises(ConfigError, match="holds no trials"):
        Notebook(file, "a")
    assert file.read_text() == "my thesis"


def test_tasks_are_read_before_anything_is_merged(run: Run, tmp_path: Path) -> None:
    """Also in a dry run."""
    (tmp_path / "r.yml").write_text(TEXT)
    (tmp_path / "bad.jsonl").write_text('{"promt": "a", "answer": "b"}\n')
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    common = ("sweep", "r.yml", "--grid", "alpha0=0.1,0.2")
    bad = run(*common, "--tasks", "bad.jsonl")
    assert bad.code == 1
    assert "did you mean 'prompt'" in bad.err
    assert run(*common, "--tasks", "bad.jsonl", "--dry-run").err == bad.err
    shots = run(*common, "--tasks", "good.jsonl", "--n-shot", "2")
    assert "take no examples" in shots.err
    assert not (tmp_path / "sweep-r").exists()


# The page on a checkpoint


@pytest.fixture
def told(tmp_path: Path) -> Registry:
    """A base, two hosts, a merge and a sibling, with scores by ability."""
    book = Registry()
    book.add_checkpoint("base", kind="base")
    for name in ("image", "audio"):
        parent = [omnireg.registry.Parent("base", "finetuned_from")]
        book.add_checkpoint(name, kind="finetuned", modalities=[name], parents=parent)
    for name in ("merge", "other"):
        parents = [
            omnireg.registry.Parent("image", "model", 0.5),
            omnireg.registry.Parent("audio", "model", 0.5),
            omnireg.registry.Parent("base", "base"),
        ]
        book.add_checkpoint(name, kind="merged", strategy="average", parents=parents)
    values = {
        "MMLU": {"base": 60.0, "image": 50.0, "audio": 40.0, "merge": 54.0, "other": 27.0},
        "MATH": {"base": 50.0, "merge": 20.0},
        "GPQA": {"base": 10.0, "merge": 8.0},
        "IFEval": {"base": 70.0, "merge": 40.0},
        "HarmBench": {"base": 10.0, "merge": 20.0},
        "my|bench": {"image": 4.0, "merge": 2.0},
    }
    for benchmark, scores in values.items():
        better = benchmark != "HarmBench"
        for name, value in scores.items():
            book.add_score(
                name, benchmark, value, higher_is_better=better, n=100, evaluator="<me>",
            )  # fmt: skip
    book.add_analysis(
        "merge", "shift", {"delta_avg": 0.01, "relative": 0.1, "moved": 0.5}, against="base"
    )
    return book


def test_abilities_are_means_over_their_benchmarks(told: Registry) -> None:
    """By hand: retention and gains against base, parents and siblings, in both directions."""
    found = report(told, "merge")
    assert [(a.relation, a.name) for a in found.against] == [
        ("base", "base"), ("parent", "image"), ("parent", "audio"), ("sibling", "other"),
    ]  # fmt: skip
    base = {row.ability: row for row in found.against[0].abilities}
    assert list(base) == ["knowledge", "reasoning", "instruction following", "safety"]
    assert base["knowledge"].retention == pytest.approx(0.9)
    assert base["reasoning"].benchmarks == 2
    assert base["reasoning"].retention == pytest.approx((0.4 + 0.8) / 2)
    assert base["reasoning"].gain == pytest.approx((-30 - 2) / 2)
    assert base["safety"].retention == pytest.approx(0.5)
    assert base["safety"].gain == pytest.approx(-10)
    image = {row.ability: row for row in found.against[1].abilities}
    assert image["other"].retention == pytest.approx(0.5)
    assert found.against[3].retention == pytest.approx(2)
    assert found.more_siblings == 0
    assert [s.signature for s in found.signatures] == ["instruction_following_collapse"]


def test_siblings_are_the_best_of_all_and_the_others_are_counted(told: Registry) -> None:
    """Merges and packages of the same models; newer ones do not push better ones out."""
    parents = [p for p in told.find("merge").parents if p.role in ("model", "base")]
    for number in range(14):
        kind = "package" if number == 13 else "merged"
        told.add_checkpoint(f"new-{number}", kind=kind, parents=parents)
        told.add_score(f"new-{number}", "MMLU", 10.0 + number, evaluator="<me>", n=100)
    found = report(told, "merge")
    siblings = [a.name for a in found.against if a.relation == "sibling"]
    assert siblings[:2] == ["other", "new-13"]
    assert len(siblings) == 12
    assert found.more_siblings == 3
    assert "3 more siblings are not shown" in found.markdown()


def test_the_page_in_every_form(told: Registry, run: Run, tmp_path: Path) -> None:
    """Markdown, one HTML file with its chart, JSON, and a chart for a paper."""
    text = run("report", "merge", "--plot", tmp_path / "r.png")
    assert text.code == 0, text.err
    assert "| base base | 90.0 % | 60.0 % | 57.1 % | 50.0 % |" in text.out
    assert "instruction_following_collapse" in text.out
    assert "my\\|bench" in text.out
    assert "Δavg 0.01" in text.out
    assert "![retention by ability]" in text.out
    assert "```mermaid" in text.out
    with Image.open(tmp_path / "r.png") as drawn:
        assert drawn.width > 500
    done = run("report", "merge", "--format", "html", "--out", tmp_path / "r.html")
    assert done.code == 0, done.err
    html = (tmp_path / "r.html").read_text("utf-8")
    assert "<title>Lineage of merge</title>" in html
    assert "flowchart" not in html
    assert html.count("<svg") == 2
    assert "&lt;me&gt;" in html
    assert "<me>" not in html
    assert "http" not in html.replace("http://www.w3.org", "").replace("https://www.w3", "")
    checker = Balance()
    checker.feed(html)
    assert checker.open == []
    shown = json.loads(run("report", "merge", "--json").out)
    assert set(shown) == {
        "checkpoint", "scores", "against", "signatures", "analyses", "lineage",
    }  # fmt: skip
    assert shown["lineage"].startswith("flowchart TD")
    alone = run("report", "base")
    assert alone.code == 0
    nothing = run("report", "nobody")
    assert nothing.code == 1
    told.add_checkpoint("new", kind="base")
    assert "No benchmark was measured both here" in run("report", "new").out
    assert "nothing to draw" in run("report", "new", "--plot", tmp_path / "n.png").err
    assert run("report", "merge", "--out", tmp_path / "no" / "r.md").code == 1


class Balance(HTMLParser):
    """Tags that were opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Open a tag."""
        if tag not in ("meta", "path", "use", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close it."""
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


def test_pages_keep_what_could_break_them() -> None:
    """Pipes in Markdown's tables, angle brackets in HTML."""
    table = Table(("x|y",), [(None,), (1.5,), ("<b>",)])
    blocks: list[Block] = [Heading("<h>", 1), Text("a & b"), table, Code("<c>\n", "text")]
    assert "| x\\|y |" in as_markdown(blocks)
    html = as_html(blocks, "<t>")
    assert "<title>&lt;t&gt;</title>" in html
    assert "<td class=number>1.5</td>" in html
    assert "<pre>&lt;c&gt;\n</pre>" in html


def test_recipes_of_points_are_recorded_whole(tmp_path: Path) -> None:
    """What a point was merged by can be merged again from the registry alone."""
    book = Registry(tmp_path / "r.db")
    found = sweep(TEXT, {"alpha0": [0.4]}, tmp_path / "s", book=book)
    run = book.run_of(found.points[0].name)
    assert run is not None
    recipe = parse_recipe(run.recipe_text)
    assert isinstance(recipe, Recipe)
    assert recipe.digest == with_parameters(parse_recipe(TEXT), {"alpha0": 0.4}).digest
