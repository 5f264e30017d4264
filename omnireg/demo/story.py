"""``omnireg demo``: merge the tiny family with every strategy, score it, and show what was kept.

Everything is real: the checkpoints are merged through the ordinary recipes that are left in the
folder, every score is exact match of greedy generation on held-out items, and all of it is
recorded in a registry of the demo's own.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.errors import EvaluationError
from omnireg.registry import Drawing, Kind, Parent, Registry, Role, render

if TYPE_CHECKING:
    from omnireg.evaluation.model import Subject
    from omnireg.hookspecs import Result
    from omnireg.plugins.host import PluginHost

FAMILY = Path(__file__).parent / "family"
SENSES: tuple[str, ...] = ("image", "audio", "video")
#: strategy → the line of parameters its recipes have, {host} being the one that carries it
STRATEGIES = {
    "average": "",
    "delta_weighted": "parameters: {alpha0: 0.5}\n",
    "omni_ties": "parameters: {density: 0.5}\n",
    "mmer": "parameters: {density: 0.5, scale: 1.0, mask_lambda: 0.5, mask_of: family/{host}}\n",
}
IN_HOST = "base in host"
ROUTED = "mmer, one routed model"
#: a package of all three, and the pairs of senses that no model was ever trained on together
PACKAGE = "omni"
PAIRS = ("image+audio", "image+video", "audio+video")
#: where the questions are, as files that ``omnireg eval`` reads
QUESTIONS = "tasks"
_MARK = "registry.db"

Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One way to fill the hosts' language model, scored on every host's own task."""

    method: str
    scores: "dict[str, Result]"
    retention: dict[str, float]
    base_tasks: "Result | None"

    @property
    def mean_retention(self) -> float:
        """Mean over the modalities of this score / the host's own score."""
        return sum(self.retention.values()) / len(self.retention)

    def to_json(self) -> dict[str, Any]:
        """Return the row of the retention table."""
        return {
            "method": self.method,
            "scores": {sense: _shown(score) for sense, score in self.scores.items()},
            "retention": self.retention,
            "mean_retention": self.mean_retention,
            "base_tasks": _shown(self.base_tasks) if self.base_tasks else None,
        }


@dataclass(frozen=True)
class Story:
    """What the demo found.

    Attributes:
        folder: where everything is.
        rows: the retention table.
        base: the base on its own tasks.
        hosts_on_base_tasks: the language the hosts lost.
        pairs: the routed model on questions about two senses at once.
        chance: how often the most frequent answer to them is right.
        lineage: of one merge, as a tree.
    """

    folder: Path
    rows: tuple[Row, ...]
    base: "Result"
    hosts_on_base_tasks: "dict[str, Result]"
    pairs: "dict[str, Result]"
    chance: dict[str, float]
    lineage: str

    def to_json(self) -> dict[str, Any]:
        """Return the retention table as ``omnireg demo --json`` prints it."""
        return {
            "folder": str(self.folder),
            "base_tasks": _shown(self.base),
            "hosts_on_base_tasks": {
                sense: _shown(score) for sense, score in self.hosts_on_base_tasks.items()
            },
            "rows": [row.to_json() for row in self.rows],
            "pairs": {
                pair: {**_shown(score), "chance": self.chance[pair]}
                for pair, score in self.pairs.items()
            },
        }


def _shown(score: "Result") -> dict[str, Any]:
    return {"value": score.value, "stderr": score.stderr, "n": score.n}


def tell(folder: Path, *, items: int | None = None, tick: Tick = lambda *_: None) -> Story:
    """Run the whole story in ``folder`` and return what it found.

    Args:
        folder: a new folder, or that of an earlier run, whose finished merges are kept.
        items: how many test items of each modality to use; all when None.
        tick: called with (what, done, total).

    Raises:
        EvaluationError: the folder holds something else.
    """
    _prepare(folder)
    with Registry(folder / _MARK) as book:
        _record_family(book, folder)
        _merge_everything(book, folder, tick)
        measured: dict[tuple[str, str], Result] = {}
        jobs = list(_jobs())
        for number, (name, modality) in enumerate(jobs):
            tick(f"scoring {name}", number, len(jobs))
            score = measure(_place(folder, name), _questions(folder, modality), items)
            _record_score(book, name, modality, score)
            measured[name, modality] = score
        family = book.lineage("mmer-image", direction="up")
    return _story(folder, measured, render(family, Drawing.TREE))


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EvaluationError(
            f"cannot use {folder}: {exc.strerror}; name a new folder: omnireg demo DIR"
        ) from exc
    if any(folder.iterdir()) and not (folder / _MARK).exists():
        raise EvaluationError(f"{folder} holds something else; name a new folder: omnireg demo DIR")
    for model in ("base", *SENSES):
        shutil.copytree(FAMILY / model, folder / "family" / model, dirs_exist_ok=True)
    (folder / "recipes").mkdir(exist_ok=True)
    from omnireg.demo import questions

    questions.write(folder / QUESTIONS, ("base", *SENSES, *PAIRS))


def _record_family(book: Registry, folder: Path) -> None:
    from omnireg.checkpoints.checkpoint import open_checkpoint
    from omnireg.recording import record_checkpoint

    for name in ("base", *SENSES):
        record_checkpoint(
            book,
            open_checkpoint(str(folder / "family" / name)),
            name=name,
            kind=Kind.BASE if name == "base" else Kind.FINETUNED,
            modalities=[] if name == "base" else [name],
            parents=[] if name == "base" else [Parent("base", Role.FINETUNED_FROM)],
        )


def recipe(strategy: str, host: str | None) -> str:
    """Return the recipe of one merge: a backbone, or one host around it."""
    models = "".join(f"  - model: family/{sense}\n" for sense in SENSES)
    parameters = STRATEGIES[strategy].replace("{host}", host or "")
    carried = f"omnireg:\n  output: host\n  host: family/{host}\n" if host else ""
    return (
        f"merge_method: {strategy}\nbase_model: family/base\nmodels:\n{models}{parameters}{carried}"
    )


def package_recipe() -> str:
    """Return the recipe of the package, with the settings of the other merges."""
    text = recipe("mmer", None).replace(", mask_of: family/", "")
    return f"{text}omnireg: {{output: package}}\n"


def _wanted() -> Iterator[tuple[str, str, str | None]]:
    """Yield (name, strategy, host) of every merge; MMER has no model without a modality."""
    for strategy in STRATEGIES:
        if strategy != "mmer":
            yield strategy, strategy, None
        for sense in SENSES:
            yield f"{strategy}-{sense}", strategy, sense


def _merge_everything(book: Registry, folder: Path, tick: Tick) -> None:
    from omnireg.merging import merge
    from omnireg.plugins.host import PluginHost

    plugins = PluginHost()
    wanted = list(_wanted())
    with chdir(folder):
        for number, (name, strategy, host) in enumerate(wanted):
            tick(f"merging {name}", number, len(wanted))
            path = Path("recipes") / f"{name}.yml"
            path.write_text(recipe(strategy, host), encoding="utf-8")
            if not _kept(book, name):
                merge(path, name, name=name, registry=book, plugins=plugins)
        path = Path("recipes") / f"{PACKAGE}.yml"
        path.write_text(package_recipe(), encoding="utf-8")
        if not _kept(book, PACKAGE):
            merge(path, PACKAGE, name=PACKAGE, registry=book, plugins=plugins)
        _language_models(book, plugins)


def _language_models(book: Registry, plugins: "PluginHost") -> None:
    """Two comparisons that need no merge: the base in every host, and every host's own words."""
    from omnireg.backbones.grafting import extract, graft
    from omnireg.planning import open_model

    base = open_model("family/base", plugins)
    for sense in SENSES:
        host = open_model(f"family/{sense}", plugins)
        inside, words = f"base-in-{sense}", f"{sense}-words"
        if not _kept(book, inside):
            graft(base, host, Path(inside))
            _record(book, inside, Kind.MERGED, ("base", Role.MODEL), (sense, Role.HOST))
        if not _kept(book, words):
            extract(host, Path(words), base=base)
            _record(book, words, Kind.FINETUNED, (sense, Role.MODEL), ("base", Role.BASE))


def _record(book: Registry, name: str, kind: Kind, *parents: tuple[str, Role]) -> None:
    from omnireg.checkpoints.checkpoint import open_checkpoint
    from omnireg.recording import record_checkpoint

    found = [Parent(parent, role) for parent, role in parents]
    record_checkpoint(book, open_checkpoint(f"./{name}"), name=name, kind=kind, parents=found)


def _kept(book: Registry, name: str) -> bool:
    """Whether an earlier run already made this; anything half-known is made again."""
    from omnireg.package import fingerprint_of

    record, folder = book.get(name), Path(name)
    if record and folder.is_dir():
        if fingerprint_of(folder.resolve()) == record.fingerprint:
            return True
        raise EvaluationError(f"{folder.resolve()} was changed since; remove it and run again")
    if folder.exists():
        shutil.rmtree(folder)
    return False


def _jobs() -> Iterator[tuple[str, str]]:
    """Yield every (checkpoint, modality) to score, the family first."""
    yield "base", "base"
    for sense in SENSES:
        yield sense, sense
        yield f"{sense}-words", "base"
        yield f"base-in-{sense}", sense
    for name, _, host in _wanted():
        yield name, host or "base"
    for modality in ("base", *SENSES, *PAIRS):
        yield PACKAGE, modality


def _place(folder: Path, name: str) -> Path:
    return folder / "family" / name if name in ("base", *SENSES) else folder / name


def _record_score(book: Registry, name: str, modality: str, score: "Result") -> None:
    from omnireg.evaluation.generative import EVALUATOR
    from omnireg.workflows.evaluating import enter

    said = replace(score, ability=score.ability or "language")
    enter(book, name, said, EVALUATOR.name, EVALUATOR.version, replace_=True)


def measure(folder: Path, asked: Path, limit: int | None = None) -> "Result":
    """Score a checkpoint by greedy generation and exact match on a file of questions."""
    from omnireg.checkpoints.loading import quiet
    from omnireg.demo import questions
    from omnireg.evaluation.generative import measure

    conduct = replace(questions.CONDUCT, limit=limit)
    with quiet(), _one_thread():
        (found,) = measure(_subject(folder), asked.stem, questions.read(asked), conduct)
    return found


@lru_cache(maxsize=1)
def _subject(folder: Path) -> "Subject":
    """Load a checkpoint in float32, the fastest type on a CPU; the last one is kept."""
    from omnireg.evaluation.opening import open_subject

    return open_subject(folder, dtype="float32")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small are multiplied several times faster without handing them around."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _questions(folder: Path, modality: str) -> Path:
    """Return the file of a modality's questions."""
    from omnireg.demo import questions

    return questions.file_of(folder / QUESTIONS, modality)


def _story(folder: Path, scores: "dict[tuple[str, str], Result]", lineage: str) -> Story:
    own = {sense: scores[sense, sense] for sense in SENSES}
    names = {"own model": "{}", IN_HOST: "base-in-{}", **{s: f"{s}-{{}}" for s in STRATEGIES}}
    names[ROUTED] = PACKAGE
    rows = []
    for method, pattern in names.items():
        found = {sense: scores[pattern.format(sense), sense] for sense in SENSES}
        kept = {s: found[s].value / max(own[s].value, 1e-9) for s in SENSES}
        on_base = scores.get((PACKAGE if method == ROUTED else method, "base"))
        rows.append(Row(method, found, kept, on_base))
    pairs = {pair: scores[PACKAGE, pair] for pair in PAIRS}
    chance = {pair: _chance(_questions(folder, pair)) for pair in PAIRS}
    words = {sense: scores[f"{sense}-words", "base"] for sense in SENSES}
    return Story(folder, tuple(rows), scores["base", "base"], words, pairs, chance, lineage)


def _chance(file: Path) -> float:
    """Return how often the most frequent answer is right."""
    from omnireg.demo import questions

    asked = questions.read(file)
    answers = Counter(item.answers[0] for item in asked)
    return max(answers.values()) / len(asked)
