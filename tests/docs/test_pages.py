"""Every command that a page shows is run, in a folder like the one the page speaks of."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import omnireg
from omnireg.demo import story
from omnireg.registry import Registry
from tests_support import Outcome, Run
from zoo import Zoo, in_llava_code

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`([\w.-]+\.(?:ya?ml|py))`[^`]*\Z")
_FIRST = re.compile(r"#\s*([\w.-]+\.(?:ya?ml|py))\b")
#: commands that need what a test has not, each with the reason
NOT_RUN = {
    "docs/how-to/evaluate.md": {
        "eval mmer-image --tasks mmlu": "data sets of the Hub",
        "eval base --tasks my_task": "a task of the reader's own; see test_evaluation",
        "scores import": "a file of the reader's own; see test_evaluation",
    },
    "docs/how-to/use-with-mergekit.md": {
        "mergekit multi": "recipes of the reader's own; see test_merge",
        "mergekit moe": "recipes of the reader's own; see test_merge",
        "mergekit pytorch": "recipes of the reader's own; see test_merge",
    },
    "docs/how-to/write-a-strategy.md": {
        "strategies show pull": "after an installation; see test_skeleton",
    },
    "docs/how-to/extract-and-graft.md": {
        "--json backbone extract family/unbiased": "a host without biases; see test_backbone",
    },
    "docs/how-to/record-and-query.md": {
        "--json show cab82cae": "a fingerprint of the page's own example",
    },
    "docs/how-to/merge-published-models.md": {
        "plan with-audio.yml": "it is refused; see the test below",
    },
    "docs/index.md": {"demo": "it is what these tests begin with"},
    "README.md": {},
}
#: they speak of a database server
ON_A_SERVER = {"docs/how-to/team-registry.md"}
#: they speak of the Hub, and of answers at the keyboard
ON_THE_HUB = {"docs/how-to/publish.md", "docs/tutorial/omni-model.md"}
#: they may find something
FINDS = ("check",)


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the text before each block, its language and its content."""
    text, last = page.read_text("utf-8"), 0
    for found in _FENCE.finditer(text):
        yield text[last : found.start()], found[2], found[3]
        last = found.end()


def commands(language: str, content: str) -> list[str]:
    """Return the commands of a block, one line each."""
    lines = content.replace("\\\n", " ").splitlines()
    if language in ("", "bash", "console", "sh"):
        return [line.strip().removeprefix("$ ") for line in lines if line.strip()]
    return [line[2:] for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family in a registry, with the merges that pages speak of."""
    top = tmp_path_factory.mktemp("pages") / "family-folder"
    top.mkdir()
    shutil.copytree(story.FAMILY, top / "family")
    for copy, original in (("math", "base"), ("image2", "image"), ("depth", "image")):
        place = shutil.copytree(top / "family" / original, top / "family" / copy)
        tensors = load_file(place / "model.safetensors")
        moved = {name: tensor * 1.01 for name, tensor in tensors.items()}
        save_file(moved, place / "model.safetensors", metadata={"format": "pt"})
    return top


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder, scored on a few items."""
    folder = tmp_path_factory.mktemp("pages") / "omnireg-demo"
    story.tell(folder, items=6)
    for file in (folder / "tasks").glob("*.jsonl"):
        lines = file.read_text("utf-8").splitlines()
        file.write_text("\n".join(lines[:: max(1, len(lines) // 24)]) + "\n", "utf-8")
    return folder


Preparation = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """Begin with the folder as it is."""


def merged(folder: Path) -> None:
    """Have a merge of text and hosts recorded, called omni, and one of two hosts, called pair."""
    book = Registry(folder / "registry.db")
    models = "".join(f"  - model: family/{s}\n" for s in story.SENSES)
    text = f"merge_method: omni_ties\nbase_model: family/base\nmodels:\n{models}"
    (folder / "omni.yml").write_text(text + "parameters: {density: 0.5}\n")
    omnireg.merge(folder / "omni.yml", folder / "omni", registry=book)
    pair = "merge_method: linear\nmodels:\n  - model: family/image\n  - model: family/image2\n"
    omnireg.merge(pair + "parameters: {weight: 0.5}\n", folder / "pair", registry=book)


def recorded(folder: Path) -> None:
    """Have a merge recorded whose folder the page makes, and a recipe."""
    merged(folder)
    shutil.rmtree(folder / "omni")
    shutil.copy(folder / "omni.yml", folder / "recipe.yml")


def grafted(folder: Path) -> None:
    """Have a merge, and the same in a host that nobody recorded."""
    from omnireg.backbones.grafting import graft
    from omnireg.planning import open_model
    from omnireg.plugins.host import PluginHost

    merged(folder)
    shutil.copy(folder / "registry.db", folder / "team.db")
    plugins = PluginHost()
    words = open_model(str(folder / "omni"), plugins)
    graft(words, open_model(str(folder / "family/video"), plugins), folder / "omni-in-video")


def package(folder: Path) -> None:
    """Have a package called omni, and media."""
    import numpy as np
    from PIL import Image

    from omnireg.demo import clips, questions
    from omnireg.evaluation.items import Medium

    models = "".join(f"  - model: family/{s}\n" for s in story.SENSES)
    text = f"merge_method: mmer\nbase_model: family/base\nmodels:\n{models}"
    (folder / "omni.yml").write_text(text + "omnireg: {output: package}\n")
    omnireg.merge(folder / "omni.yml", folder / "omni", registry=Registry(folder / "registry.db"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "three.png")
    (folder / "media").mkdir()
    sound = clips.clips("audio", "test")[0].array
    (folder / questions._written(folder, Medium("audio", sound))).rename(folder / "seven.wav")

    (folder / "score.py").write_text("print(0.5)\n")
    questions.write(folder, story.SENSES)
    for sense in story.SENSES:
        lines = questions.file_of(folder, sense).read_text("utf-8").splitlines()
        (folder / f"{sense}.jsonl").write_text("\n".join(lines[::400]), "utf-8")


def text_recipe(folder: Path) -> None:
    """Have a recipe of text models for mergekit's own command."""
    (folder / "ties.yml").write_text(
        f"merge_method: ties\nbase_model: {folder / 'family/base'}\nmodels:\n"
        f"  - model: {folder / 'family/math'}\n"
        "parameters: {density: 0.5, weight: 1.0}\n"
    )


def shipped(folder: Path) -> None:
    """Have the registry that comes with the project beside."""
    shutil.copy(ROOT / "registry.db", folder / "shipped.db")


def published(folder: Path) -> None:
    """Have tiny checkpoints of the classes, and under the names, of published ones."""
    houses = Zoo(folder.parent / "zoo")
    qwen, lmms = folder / "Qwen", folder / "lmms-lab"
    for name, place in (
        ("Qwen2ForCausalLM", qwen / "Qwen2-7B-Instruct"),
        ("Qwen2VLForConditionalGeneration", qwen / "Qwen2-VL-7B-Instruct"),
        ("Qwen2ForCausalLM", lmms / "LLaVA-Video-7B-Qwen2"),
    ):
        houses.copy(houses(name), place)
    in_llava_code(lmms / "LLaVA-Video-7B-Qwen2")
    audio = houses("Qwen2AudioForConditionalGeneration", num_hidden_layers=3, hidden_size=48)
    houses.copy(audio, qwen / "Qwen2-Audio-7B-Instruct")
    shipped(folder)


#: page → which folder it begins in, and what else it finds there
PAGES: dict[str, tuple[str, Preparation]] = {
    "README.md": ("demo", shipped),
    "docs/index.md": ("family", recorded),
    "docs/tutorial/first-merge.md": ("family", nothing),
    "docs/tutorial/omni-model.md": ("demo", nothing),
    "docs/how-to/add-a-host-class.md": ("family", nothing),
    "docs/how-to/analyse.md": ("demo", nothing),
    "docs/how-to/declare-a-registry.md": ("family", shipped),
    "docs/how-to/evaluate.md": ("demo", nothing),
    "docs/how-to/extract-and-graft.md": ("family", merged),
    "docs/how-to/merge-hosts.md": ("family", nothing),
    "docs/how-to/merge-published-models.md": ("family", published),
    "docs/how-to/publish.md": ("family", merged),
    "docs/how-to/record-and-query.md": ("family", grafted),
    "docs/how-to/report.md": ("demo", shipped),
    "docs/how-to/resume-and-verify.md": ("family", recorded),
    "docs/how-to/sweep.md": ("demo", nothing),
    "docs/how-to/team-registry.md": ("family", shipped),
    "docs/how-to/use-a-package.md": ("family", package),
    "docs/how-to/use-with-mergekit.md": ("family", text_recipe),
    "docs/how-to/write-a-strategy.md": ("family", nothing),
    "docs/reference/package.md": ("family", package),
}


def shown() -> set[str]:
    """Return the pages that show a command of omnireg."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    return {
        str(page.relative_to(ROOT))
        for page in pages
        if any(
            line.startswith("omnireg ")
            for _, language, content in blocks(page)
            for line in commands(language, content)
        )
    }


def test_no_page_is_forgotten() -> None:
    """A new page with commands says where they are run."""
    assert shown() - {"docs/reference/cli.md"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_run(
    page: str, run: Run, tmp_path: Path, family_folder: Path, demo_folder: Path,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """In order, in one folder; files that the page shows are saved under their names first."""
    which, prepare = PAGES[page]
    start = family_folder if which == "family" else demo_folder
    here = tmp_path / ("here" if which == "family" else "omnireg-demo")
    shutil.copytree(start, here, copy_function=_link)
    if which == "demo":  # what a page changes must not reach the others
        (here / "registry.db").unlink()
        shutil.copy(start / "registry.db", here)
    if page == "docs/tutorial/first-merge.md":
        (tmp_path / "omnireg-demo").symlink_to(demo_folder)
    monkeypatch.chdir(here)
    monkeypatch.setenv("OMNIREG_REGISTRY", str(here / "registry.db"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if page in ON_A_SERVER:
        monkeypatch.setenv("OMNIREG_REGISTRY", request.getfixturevalue("database")("template0"))
    if page in ON_THE_HUB:
        request.getfixturevalue("hub")
        monkeypatch.setattr("sys.stdin", Keyboard("y\n" * 9))
    prepare(here)
    skipped = set()
    for before, language, content in blocks(ROOT / page):
        _save(here, before, language, content)
        for line in commands(language, content):
            reason = next((r for r in NOT_RUN.get(page, {}) if _is(line, r)), None)
            if reason is not None and line.startswith("omnireg "):
                skipped.add(reason)
                continue
            _run(line, run, here)
    assert skipped == set(NOT_RUN.get(page, {})), "a reason not to run that nothing needs"


class Keyboard(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _is(line: str, beginning: str) -> bool:
    return line.startswith(f"omnireg {beginning}".strip())


def _save(here: Path, before: str, language: str, content: str) -> None:
    """Save a file that the page shows under a name."""
    if language not in ("yaml", "python"):
        return
    name = _FIRST.match(content) or _NAMED.search(before.strip())
    if name:
        (here / name[1]).write_text(content, "utf-8")
    elif "omnireg: 1" in content:
        (here / "models.yaml").write_text(content, "utf-8")


def _run(line: str, run: Run, here: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[:1] == ["grep"]:
        subprocess.run(line, shell=True, check=True, cwd=here)
        return
    if words[:1] == ["python"]:
        subprocess.run([sys.executable, *words[1:]], check=True, cwd=here)
        return
    if words[:1] != ["omnireg"]:
        return
    arguments = [
        str(here / "shipped.db") if word == "registry.db" and "--registry" in words else word
        for word in words[1:]
    ]
    shown = any(word.startswith(("Qwen", "lmms-lab/")) for word in arguments)
    if shown and "--registry" not in arguments and not (here / "Qwen").exists():
        arguments = ["--registry", str(here / "shipped.db"), *arguments]
    if arguments[0] == "merge" and (here / arguments[2]).exists():
        shutil.rmtree(here / arguments[2])  # the page shows another way to make it
    if "&&" in arguments:
        arguments = arguments[: arguments.index("&&")]
    redirected = arguments[arguments.index(">") + 1] if ">" in arguments else None
    done: Outcome = run(*(arguments[: arguments.index(">")] if redirected else arguments))
    if redirected:
        (here / redirected).write_text(done.out, "utf-8")
    finds = any(word in FINDS for word in arguments)
    assert done.code in ((0, 1) if finds else (0,)), f"{line}\n{done.err}"


def test_the_page_on_published_models_says_what_fits(run: Run, tmp_path: Path) -> None:
    """Every class in its table is one that is known; the audio model is refused for its shape."""
    from omnireg.plugins.host import PluginHost

    published(tmp_path)
    page = (DOCS / "how-to" / "merge-published-models.md").read_text("utf-8")
    classes = set(re.findall(r"`(\w+(?:ForCausalLM|ForConditionalGeneration))`", page))
    assert len(classes) == 5
    assert classes <= set(PluginHost().layouts)
    (recipe,) = (
        c for _, _, c in blocks(DOCS / "how-to/merge-published-models.md") if "# omni.yml" in c
    )
    audio = recipe.replace("lmms-lab/LLaVA-Video-7B-Qwen2", "Qwen/Qwen2-Audio-7B-Instruct")
    (tmp_path / "with-audio.yml").write_text(audio)
    refused = run("plan", "with-audio.yml")
    assert refused.code == 1
    assert "Qwen2-Audio-7B-Instruct does not extend Qwen/Qwen2-7B-Instruct" in refused.err
    assert "48 wide and 3 layers deep, the base 32 and 2" in refused.err
