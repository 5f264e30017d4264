"""How good a checkpoint is: evaluators, files of items, and results that other programs wrote."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omnireg.demo import questions, story
from omnireg.errors import EvaluationError
from omnireg.evaluation.abilities import ABILITIES, ability_of
from omnireg.evaluation.documents import parse, read_document
from omnireg.evaluation.items import Item, Medium, read_items
from omnireg.evaluation.metrics import METRICS
from omnireg.evaluation.opening import open_subject
from omnireg.hookspecs import Conduct, Result
from omnireg.plugins.host import PluginHost
from omnireg.registry import Registry
from omnireg.workflows.evaluating import scorer
from tests_support import Run, distribution, write_task

DATA = Path(__file__).with_name("data")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's test questions as files of items."""
    folder = tmp_path_factory.mktemp("asked")
    questions.write(folder, ("base", *story.SENSES, *story.PAIRS))
    return folder


def some(asked: Path, sense: str, count: int, folder: Path) -> Path:
    """Write a file of some of the questions of a modality, from all over."""
    source = questions.file_of(asked, sense)
    lines = source.read_text("utf-8").splitlines()
    for line in (chosen := [lines[i * len(lines) // count] for i in range(count)]):
        for files in json.loads(line).get("media", {}).values():
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(asked / file, folder / file)
    made = folder / source.name
    made.write_text("\n".join(chosen) + "\n", "utf-8")
    return made


@pytest.fixture
def family(run: Run) -> None:
    """The tiny family in the registry."""
    assert run("add", story.FAMILY / "base").code == 0
    for sense in story.SENSES:
        assert run("add", story.FAMILY / sense, "--parent", "base").code == 0


# Results that other programs wrote


def test_results_of_lm_eval_are_read_with_all_their_conditions() -> None:
    """Value, error, counts, shots, version, seeds and split of every task, metric and filter."""
    found = read_document(DATA / "lm-eval.json")
    assert (found.evaluator, found.version, found.model) == ("lm-eval", "0.4.13", "family/base")
    words, choice = found.results
    assert (words.benchmark, words.metric, words.n, words.n_shot) == (
        "tiny_base", "exact_match", 1259, 0,
    )  # fmt: skip
    assert words.value == pytest.approx(0.9666, abs=1e-4)
    assert words.stderr == pytest.approx(0.0051, abs=1e-4)
    assert words.setup == {"task_version": "1.0", "seeds": [0, 1234, 1234, 1234]}
    assert (words.split, words.filter, words.partial) == ("test", None, False)
    assert words.details["file"] == "lm-eval.json"
    assert words.details["dtype"] == "float32"
    assert (choice.benchmark, choice.metric, choice.n) == ("tiny_choice", "acc", 390)


def test_a_limit_makes_a_score_partial() -> None:
    """In both programs' files; the limit, and the hash of what was asked, are conditions."""
    for name, count in (("lm-eval-limited", 40), ("lmms-eval-limited", 5)):
        for result in read_document(DATA / f"{name}.json").results:
            assert result.partial
            assert result.n == count
            assert result.setup["limit"] == count
            assert len(result.setup["task_hash"]) == 64


def test_a_group_counts_the_items_of_its_tasks() -> None:
    """Groups stand beside the tasks; a chat template and shots are conditions."""
    found = {r.benchmark: r for r in read_document(DATA / "lm-eval-group.json").results}
    assert {name: result.n for name, result in found.items()} == {
        "tiny_low": 184, "tiny_high": 206, "tiny_digits": 390,
    }  # fmt: skip
    weighted = (184 * found["tiny_low"].value + 206 * found["tiny_high"].value) / 390
    assert found["tiny_digits"].value == pytest.approx(weighted)
    assert found["tiny_digits"].n_shot == 2
    assert found["tiny_digits"].setup["task_version"] == "3.0"
    assert len(found["tiny_low"].setup["chat_template"]) == 64
    assert found["tiny_low"].setup["fewshot_as_multiturn"] is True


def test_results_of_lmms_eval_are_read() -> None:
    """Its version is not in the file, and some of its errors are no numbers."""
    found = read_document(DATA / "lmms-eval.json")
    (digit,) = found.results
    assert (found.evaluator, found.version) == ("lmms-eval", None)
    assert (digit.value, digit.stderr, digit.n, digit.partial) == (1.0, 0.0, 12, False)
    assert digit.setup["task_version"] == "1.0"


def test_a_metric_that_counts_the_other_way_is_a_benchmark_of_its_own() -> None:
    """A benchmark has one direction; filters and unknown numbers are kept apart."""
    found = parse(
        {
            "results": {
                "lambada": {
                    "alias": "lambada", "acc,none": 0.5, "acc_stderr,none": "N/A",
                    "perplexity,none": 12.0, "acc,strict": 0.25, "words,none": math.nan,
                },
                "odd": "nothing",
            },
            "higher_is_better": {"lambada": {"acc": True, "perplexity": False}},
            "n-shot": {"lambada": 5},
        }
    )  # fmt: skip
    assert [(r.benchmark, r.metric, r.filter, r.higher_is_better) for r in found.results] == [
        ("lambada", "acc", None, True),
        ("lambada (perplexity)", "perplexity", None, False),
        ("lambada", "acc", "strict", True),
    ]
    assert [r.n for r in found.results] == [None] * 3


def test_files_that_are_no_results_are_refused(tmp_path: Path, run: Run, family: None) -> None:
    """Samples, damaged JSON, missing files and files without numbers, each with its reason."""
    file = tmp_path / "f.json"
    for text, said in (
        ('{"results": {"t": {', "is damaged (Expecting"),
        ("[1, 2]", "no results of lm-eval"),
        ('{"results": [1]}', "no `results` by task"),
        ('{"results": {}}', "no numbers"),
        ('{"doc_id": 0}', "no `results` by task"),
    ):
        file.write_text(text)
        done = run("scores", "import", "base", file)
        assert done.code == 1
        assert said in done.err
    assert "cannot read" in run("scores", "import", "base", tmp_path / "none.json").err
    assert "no checkpoint" in run("scores", "import", "nobody", DATA / "lm-eval.json").err
    assert "has no scores" in run("scores", "base").err


def test_imported_scores_are_recorded_once(run: Run, family: None) -> None:
    """Importing twice changes nothing; partial scores top no leaderboard."""
    for _ in range(2):
        for name in ("lm-eval", "lm-eval-limited", "lmms-eval"):
            assert run("scores", "import", "base", DATA / f"{name}.json").code == 0
    shown = json.loads(run("scores", "base", "--json").out)
    assert [(s["benchmark"], s["partial"], s["evaluator"]) for s in shown] == [
        ("handwritten_digit", False, "lmms-eval"),
        ("tiny_base", False, "lm-eval"),
        ("tiny_base", True, "lm-eval"),
        ("tiny_choice", False, "lm-eval"),
        ("tiny_choice", True, "lm-eval"),
    ]
    (place,) = json.loads(run("leaderboard", "tiny_base", "--json").out)
    assert place["value"] == pytest.approx(0.9666, abs=1e-4)
    table = run("scores", "base").out
    assert "40 (partial)" in table
    assert "limit 40.0" in table
    assert "seeds" not in table


def test_another_value_of_the_same_run_is_not_believed(
    run: Run, family: None, tmp_path: Path
) -> None:
    """Unless it is said to replace what is there."""
    assert run("scores", "import", "base", DATA / "lm-eval.json").code == 0
    data = json.loads((DATA / "lm-eval.json").read_text())
    data["results"]["tiny_base"]["exact_match,none"] = 0.5
    (tmp_path / "other.json").write_text(json.dumps(data))
    refused = run("scores", "import", "base", tmp_path / "other.json")
    assert refused.code == 1
    assert "--replace" in refused.err
    assert run("scores", "import", "base", tmp_path / "other.json", "--replace").code == 0
    assert run("leaderboard", "tiny_base").out.split()[-1] == "0.5"


# lm-evaluation-harness in this process


@pytest.fixture
def task(asked: Path, tmp_path: Path) -> Path:
    """A folder with a task of the harness about some of the base's questions."""
    items = [item for item in read_items(questions.file_of(asked, "base")) if item.answers]
    rows = [{"q": i.prompt, "a": i.answers[0]} for i in items[::30]]
    return write_task(tmp_path / "tasks", rows)


def test_a_real_run_of_the_harness_is_recorded(
    run: Run, family: None, task: Path, asked: Path
) -> None:
    """Offline, on a text model and on a host's language model; the same items give the same."""
    for name in ("base", "image"):
        done = run(
            "eval", name, "--tasks", "tiny_words", "--include-path", task, "--dtype", "float32",
            "--batch-size", "64", "--ability", "reasoning", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        (score,) = json.loads(done.out)
        assert (score["evaluator"], score["n"], score["n_shot"]) == ("lm-eval", 42, 0)
        assert (score["ability"], score["split"], score["partial"]) == ("reasoning", "test", False)
        assert score["setup"]["task_version"] == "1.5"
        assert len(score["setup"]["task_hash"]) == 64
        subject = open_subject(story.FAMILY / name, dtype="float32")
        items = [i for i in read_items(questions.file_of(asked, "base")) if i.answers][::30]
        answers = subject.respond(items, max_new_tokens=8, chat=False)
        right = sum(a.text == i.answers[0] for a, i in zip(answers, items, strict=True))
        assert score["value"] == pytest.approx(right / 42)
    rows = json.loads(run("compare", "image", "--against", "base", "--json").out)["rows"]
    assert rows[0]["values"]["image"]["delta"] < -0.2


def test_a_limited_run_is_partial_and_stands_beside_the_whole_one(
    run: Run, family: None, task: Path
) -> None:
    """A quick look first does not stand in the way of the measurement."""
    common = ("eval", "base", "--tasks", "tiny_words", "--include-path", task, "--batch-size", 64)
    assert "(partial)" in run(*common, "--limit", "5").out
    assert run(*common).code == 0
    (place,) = json.loads(run("leaderboard", "tiny_words", "--json").out)
    shown = json.loads(run("scores", "base", "--json").out)
    assert [(s["n"], s["partial"]) for s in shown] == [(5, True), (42, False)]
    assert place["value"] == shown[1]["value"]


def test_the_harness_sees_pictures_through_its_own_adapter(
    run: Run, family: None, asked: Path, tmp_path: Path
) -> None:
    """A task with doc_to_image on the image host; a text model cannot take it."""
    folder = tmp_path / "tasks"
    file = some(asked, "image", 12, folder)
    items = [i for i in read_items(file) if len(i.media) == 1]
    rows = [{"q": i.prompt, "a": i.answers[0], "file": str(i.media[0].content)} for i in items]
    write_task(folder, rows, "tiny_pictures", "doc_to_image: !function utils.images\n")
    (folder / "utils.py").write_text(
        "from PIL import Image\n"
        "def images(doc):\n    return [Image.open(doc['file']).convert('RGB')]\n"
    )
    common = ("--tasks", "tiny_pictures", "--include-path", folder, "--dtype", "float32")
    done = run("eval", "image", *common, "--json")
    assert done.code == 0, done.err
    (score,) = json.loads(done.out)
    assert score["n"] == len(items)
    assert score["value"] > 0.8
    refused = run("eval", "base", *common)
    assert refused.code == 1
    assert "whose adapters take hosts of that kind" in refused.err


def test_tasks_that_cannot_be_run_say_why(run: Run, family: None, task: Path) -> None:
    """Unknown names, folders that are not there, data that is not there, broken YAML."""
    common = ("eval", "base", "--include-path", task, "--tasks")
    unknown = run(*common, "tiny_word")
    assert unknown.code == 1
    assert "did you mean 'tiny_words'" in unknown.err
    missing = run("eval", "base", "--tasks", "t", "--include-path", task / "none")
    assert "there is no folder" in missing.err
    (task / "data.json").unlink()
    gone = run(*common, "tiny_words")
    assert gone.code == 1
    assert "cannot be loaded" in gone.err
    assert "no tasks are named" in run(*common, ",").err
    assert "Traceback" not in gone.err


# Files of items


def test_hosts_and_packages_answer_the_same_files(
    run: Run, family: None, asked: Path, tmp_path: Path
) -> None:
    """Every sense on its host and on a package of all, mixed prompts on the package alone."""
    models = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in story.SENSES)
    (tmp_path / "r.yml").write_text(
        f"merge_method: mmer\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{models}"
        "parameters: {density: 0.5}\nomnireg: {output: package}\n"
    )
    assert run("merge", "r.yml", "omni", "-q").code == 0
    files = {sense: some(asked, sense, 48, tmp_path / sense) for sense in story.SENSES}
    how = ("--dtype", "float32", "--no-chat-template", "--max-new-tokens", 8, "--json")
    alone = {}
    for sense, file in files.items():
        done = run("eval", sense, "--tasks", file, *how)
        assert done.code == 0, done.err
        (score,) = json.loads(done.out)
        assert (score["benchmark"], score["metric"]) == (f"tiny-{sense}", "exact_match")
        assert (score["evaluator"], score["ability"], score["n"]) == ("generative", sense, 48)
        assert score["details"]["by_category"]["digit"][1] > 0
        alone[sense] = score["value"]
    mixed = some(asked, "image+audio", 12, tmp_path / "mixed")
    together = run("eval", "omni", "--tasks", ",".join(map(str, [*files.values(), mixed])), *how)
    assert together.code == 0, together.err
    found = {s["benchmark"]: s for s in json.loads(together.out)}
    for sense in story.SENSES:
        assert found[f"tiny-{sense}"]["value"] >= alone[sense] - 0.05
    assert found["tiny-image+audio"]["value"] > 0.7
    assert found["tiny-image+audio"]["ability"] == "audio+image"
    refused = run("eval", "image", "--tasks", mixed)
    assert refused.code == 1
    assert "audio, which" in refused.err
    assert "it takes in image" in refused.err


def test_a_limit_spreads_over_a_file(asked: Path) -> None:
    """So that a sorted file is not judged by its beginning."""
    from omnireg.evaluation.generative import EVALUATOR

    file = questions.file_of(asked, "base")
    conduct = Conduct(limit=20, max_new_tokens=8, chat_template=False, dtype="float32")
    (result,) = EVALUATOR.evaluate(story.FAMILY / "base", [str(file)], conduct)
    assert (result.n, result.partial, result.setup["limit"]) == (20, True, 20)
    assert len(result.details["by_category"]) > 4
    again = Conduct(
        include_path=asked, limit=20, max_new_tokens=8, chat_template=False, dtype="float32"
    )
    (same,) = EVALUATOR.evaluate(story.FAMILY / "base", ["tiny-base"], again)
    assert same == result


def test_items_that_cannot_be_asked_say_which_line(tmp_path: Path) -> None:
    """Keys, types, media and placeholders; the file and the line are named."""
    file = tmp_path / "items.jsonl"
    good = {"prompt": "a", "answer": "b"}
    (tmp_path / "x.png").write_bytes(b"")
    for line, said in (
        ({"promt": "a", "answer": "b"}, "did you mean 'prompt'"),
        ({"answer": "b"}, "prompt: Field required"),
        ({**good, "anwser": "b"}, "did you mean 'answer'"),
        ({**good, "media": {"image": "none.png"}}, "no image file"),
        ({**good, "prompt": "<image><image>", "media": {"image": "x.png"}}, "2 <image> in the"),
        ({**good, "prompt": ""}, "at least 1 character"),
        ([1], "valid dictionary"),
    ):
        file.write_text(json.dumps(good) + "\n\n" + json.dumps(line) + "\n")
        with pytest.raises(EvaluationError, match=r"items\.jsonl:3: ") as caught:
            read_items(file)
        assert said in str(caught.value)
    file.write_text('{"prompt": "a"')
    with pytest.raises(EvaluationError, match=r"jsonl:1 is damaged .*; write one JSON object"):
        read_items(file)
    file.write_text("\n")
    with pytest.raises(EvaluationError, match="has no items"):
        read_items(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read_items(file)


def test_items_without_answers_or_metrics_are_refused(
    run: Run, family: None, tmp_path: Path
) -> None:
    """Before the model is loaded; a damaged picture is named as well."""
    file = tmp_path / "i.jsonl"
    file.write_text('{"prompt": "a"}\n')
    assert "has no `answer`" in run("eval", "base", "--tasks", file).err
    file.write_text('{"prompt": "a", "answer": "b", "metric": "exact_mach"}\n')
    assert "did you mean 'exact_match'" in run("eval", "base", "--tasks", file).err
    (tmp_path / "x.png").write_bytes(b"no picture")
    file.write_text('{"prompt": "<image>?", "answer": "b", "media": {"image": "x.png"}}\n')
    broken = run("eval", "image", "--tasks", file)
    assert broken.code == 1
    assert "cannot read" in broken.err
    assert "cannot read" in run("eval", "base", "--tasks", "none.jsonl").err


def test_media_stand_where_their_placeholders_do() -> None:
    """In order by modality; those without a placeholder come first."""
    one, two = Medium("image", "1"), Medium("image", "2")
    sound = Medium("audio", "3")
    mixed = Item("i", "a <image> b <audio> c <image>", media=(one, two, sound))
    assert mixed.parts == ("a ", one, " b ", sound, " c ", two)
    assert Item("i", "a", media=(one, sound)).parts == (one, sound, "\n", "a")
    assert Item("i", "no <image> here").parts == ("no <image> here",)
    assert mixed.modalities == ("audio", "image")


def test_a_chat_template_of_parts_gets_parts(tmp_path: Path) -> None:
    """Templates that want a list of parts and those that want a text are told apart."""
    shutil.copytree(story.FAMILY / "image", tmp_path / "image")
    (tmp_path / "image" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}[{{ part['text'] }}]{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    picture = Medium("image", np.zeros((8, 8), np.uint8))
    item = Item("i", "see <image> there", media=(picture,))
    parts = open_subject(tmp_path / "image")
    assert parts.texts([item], chat=True) == ["[see ]<image>[ there]"]
    assert parts.texts([item], chat=False) == ["see <image> there"]
    whole = open_subject(story.FAMILY / "image")
    assert whole.texts([item], chat=True) == ["see <image> there\n"]


def test_answers_do_not_depend_on_the_batch(asked: Path) -> None:
    """Neither on its size nor on who else is in it."""
    items = [
        item for sense in ("image", "base") for item in read_items(questions.file_of(asked, sense))
    ][::97]
    subject = open_subject(story.FAMILY / "image", dtype="float32")
    whole = subject.respond(items, max_new_tokens=4, chat=False, batch_size=64)
    single = subject.respond(items, max_new_tokens=4, chat=False, batch_size=1)
    assert [r.text for r in whole] == [r.text for r in single]
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)


def test_a_picture_counts_whatever_its_file(tmp_path: Path) -> None:
    """The digest of a file of items covers its media."""
    file = tmp_path / "i.jsonl"
    file.write_text('{"prompt": "<image>", "answer": "b", "media": {"image": "x.png"}}\n')
    found = set()
    for shade in (0, 255):
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(tmp_path / "x.png")
        found.add(read_items(file).sha256)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("metric", "answer", "right", "points"),
    [
        ("exact_match", " 5\n", ["5"], 1),
        ("exact_match", "Five", ["five"], 0),
        ("relaxed_match", "The answer: Five!", ["the Answer five"], 1),
        ("relaxed_match", "six", ["five"], 0),
        ("contains", "it is FIVE, I think", ["five"], 1),
        ("contains", "it is six", ["five"], 0),
        ("choice", "The answer is (B).", ["B"], 1),
        ("choice", "B or C", ["C"], 0),
        ("choice", "banana", ["B"], 0),
        ("number", "so 3 + 4 = 1,007.0", ["1007"], 1),
        ("number", "about 7", ["7.1"], 0),
        ("number", "none", ["7"], 0),
        ("number", "-1e3", ["-1000"], 1),
    ],
)
def test_metrics(metric: str, answer: str, right: list[str], points: int) -> None:
    """By hand."""
    assert METRICS[metric](answer, right) == points


def test_abilities_of_known_benchmarks() -> None:
    """The names of the papers and those of the harness; unknown ones say nothing."""
    for name, ability in (
        ("MMLU", "knowledge"), ("mmlu_pro", "knowledge"), ("GPQA", "reasoning"),
        ("MATH", "reasoning"), ("HumanEval+", "reasoning"), ("IFEval", "instruction following"),
        ("MMMLU", "multilingual"), ("HarmBench", "safety"), ("ZeroScrolls", "long context"),
        ("PR", "long context"), ("MMMU", "image"), ("Video-MME", "video"), ("mmau", "audio"),
        ("gsm8k", "reasoning"), ("tiny-image", None), ("primes", None),
    ):  # fmt: skip
        assert ability_of(name) == ability, name
    assert ability_of("MathVista") == "image"
    assert len(set(ABILITIES)) == 9


# Evaluators of others


EVALUATOR = """
from omnireg import hookimpl
from omnireg.hookspecs import Result

class Length:
    name, version = "length", "3"

    def evaluate(self, folder, tasks, conduct):
        for task in tasks:
            yield Result(task, "bytes", float((folder / "config.json").stat().st_size),
                         higher_is_better=False, n=conduct.limit)

@hookimpl
def omnireg_register_evaluators(register):
    register(Length())
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluator of another distribution."""
    site = tmp_path / "site"
    site.mkdir()
    distribution(site, "omnireg-length", EVALUATOR)
    monkeypatch.syspath_prepend(str(site))


def test_an_evaluator_of_a_plugin_measures(run: Run, family: None, plugin: None) -> None:
    """By name; its results are recorded under it, with its version and its direction."""
    done = run("eval", "base", "--tasks", "size", "--evaluator", "length", "--json")
    assert done.code == 0, done.err
    (score,) = json.loads(done.out)
    size = (story.FAMILY / "base" / "config.json").stat().st_size
    assert (score["value"], score["higher_is_better"]) == (size, False)
    assert (score["evaluator"], score["evaluator_version"]) == ("length", "3")
    found = json.loads(run("plugins", "--json").out)
    assert {"length"} in [set(p.get("evaluators", [])) for p in found]
    unknown = run("eval", "base", "--tasks", "size", "--evaluator", "lenght")
    assert "did you mean 'length'" in unknown.err


def test_a_scorer_gives_numbers_that_are_better_higher(
    plugin: None, asked: Path, tmp_path: Path
) -> None:
    """By benchmark; by modality where every task has one of its own."""
    score = scorer(["a", "b"], "length", plugins=PluginHost())
    size = float((story.FAMILY / "base" / "config.json").stat().st_size)
    assert score(story.FAMILY / "base") == {"a": -size, "b": -size}
    file = some(asked, "image", 6, tmp_path)
    found = scorer([str(file)], conduct=Conduct(max_new_tokens=8, chat_template=False))
    assert set(found(story.FAMILY / "image")) == {"image"}


def test_what_was_measured_is_kept_when_a_later_task_fails(
    run: Run, family: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every score is recorded as soon as it is there."""
    from omnireg.evaluation import generative

    def evaluate(self: Any, folder: Path, tasks: Any, conduct: Conduct) -> Iterator[Result]:
        yield Result("first", "exact_match", 0.5)
        raise EvaluationError("the second one broke")

    monkeypatch.setattr(generative.Generative, "evaluate", evaluate)
    done = run("eval", "base", "--tasks", "a.jsonl")
    assert done.code == 1
    assert "the second one broke" in done.err
    with Registry() as book:
        assert [s.benchmark for s in book.scores("base")] == ["first"]


def test_files_that_changed_are_not_measured(run: Run, tmp_path: Path) -> None:
    """A score belongs to the weights that were recorded, not to whatever lies there now."""
    shutil.copytree(story.FAMILY / "image", tmp_path / "m")
    added = run("add", tmp_path / "m", "--parent", story.FAMILY / "base")
    assert added.code == 0, added.err
    (tmp_path / "i.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    shutil.copy(story.FAMILY / "video" / "model.safetensors", tmp_path / "m")
    changed = run("eval", "m", "--tasks", tmp_path / "i.jsonl")
    assert changed.code == 1
    assert "holds other weights" in changed.err
    (advice,) = re.findall(r"still true: omnireg (.*)", changed.err)
    assert run(*shlex.split(advice)).code == 0
    with Registry() as book:
        (other,) = (c for c in book.checkpoints() if c.name.startswith("m#"))
        assert [(p.name, p.role) for p in other.parents] == [("base", "finetuned_from")]
    shutil.rmtree(tmp_path / "m")
    assert "which is gone" in run("eval", "m", "--tasks", tmp_path / "i.jsonl").err


def test_a_placeholder_without_its_medium_is_not_scored(run: Run, family: None) -> None:
    """What somebody forgot to list would be a wrong answer of the model otherwise."""
    Path("i.jsonl").write_text('{"prompt": "<image> Which digit?", "answer": "b"}\n')
    done = run("eval", "image", "--tasks", "i.jsonl", "--no-chat-template")
    assert done.code == 1
    assert "<image> in its prompt and no image" in done.err
    with Registry() as book:
        assert book.scores("image") == []
