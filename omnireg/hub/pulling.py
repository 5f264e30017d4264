"""Read lineage back from the Hub: what a repository says becomes rows, and its files a folder.

A repository is somebody else's word. Its manifest can add to a registry, never change or remove
what is there; its claims about its own weights are compared with what the Hub says of them; its
file names stay inside the folder that is asked for.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from omnireg.checkpoint import INDEX, PACKAGE_INDEX, SINGLE, combine_digests
from omnireg.errors import PublishError, RegistryError
from omnireg.hub import card
from omnireg.hub.client import check_name, client, translated
from omnireg.hub.files import CARD, MANIFEST
from omnireg.outputs import appearing, check_free
from omnireg.package import fingerprint_of
from omnireg.registry import Kind, Parent, Registry, Role

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SECTIONS = ("benchmarks", "checkpoints", "runs", "scores")


@dataclass(frozen=True)
class Pulled:
    """What was read and recorded.

    Attributes:
        repo: the repository.
        commit: the commit that was read.
        name: of the checkpoint in the registry.
        fingerprint: of its weights, from the Hub's digests; None if it has none.
        recorded: the names that were added.
        folder: where the files are, if they were fetched.
        url: of the commit.
        files: how many were fetched.
    """

    repo: str
    commit: str
    name: str
    fingerprint: str | None
    recorded: tuple[str, ...]
    folder: Path | None
    url: str
    files: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``omnireg pull``."""
        return {
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "recorded": list(self.recorded),
            "folder": str(self.folder) if self.folder else None,
            "files": self.files,
        }


@dataclass(frozen=True)
class _Repo:
    """A repository at one commit: its files with the digests of large ones, and its card."""

    name: str
    commit: str
    files: Mapping[str, str | None]
    card: Mapping[str, Any]
    manifest: Mapping[str, Any] | None
    index: Sequence[str]

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of its weights, without having them."""
        weights = {path: sha for path, sha in self.files.items() if path.endswith(".safetensors")}
        if PACKAGE_INDEX not in self.files:
            named = self.index or ([SINGLE] if SINGLE in weights else [])
            weights = {path: weights.get(path) for path in named}
        if not weights or not all(weights.values()):
            return None
        return combine_digests((path, str(sha)) for path, sha in weights.items())


def pull(
    book: Registry,
    repo: str,
    *,
    to: Path | None = None,
    metadata_only: bool = False,
    depth: int = 10,
    allow_pickle: bool = False,
) -> Pulled:
    """Record what a repository says of its checkpoint and of its family, and fetch its files.

    Args:
        book: the registry to record in.
        repo: ``org/name``, with ``@revision`` if not the newest.
        to: the folder to make; the repository's name here when None.
        metadata_only: fetch no weights.
        depth: how many generations of ``base_model`` to follow where there is no manifest.
        allow_pickle: fetch pickled files as well.

    Raises:
        PublishError: the Hub says no, or the repository claims what is not so.
        RegistryError: a name means something else in the registry.
        MergeError: the folder exists.
    """
    name, _, revision = repo.partition("@")
    check_name(name)
    folder = None if metadata_only else (to or Path(name.partition("/")[2]))
    if folder is not None:
        check_free(folder)
    api = client()
    with translated(name, "reading"):
        found = _read(api, name, revision or None)
        _check_files(found, allow_pickle)
        count = _fetch(api, found, folder) if folder else 0
    place = str(folder.resolve()) if folder else f"{name}@{found.commit}"
    if found.manifest is not None:
        added, own = _from_manifest(book, found, place)
    else:
        with translated(name, "reading"):
            added, own = _from_cards(api, book, found, place, depth)
    url = f"{api.endpoint}/{name}/commit/{found.commit}"
    book.add_publication(own, name, found.commit, url=url)
    return Pulled(name, found.commit, own, found.fingerprint, tuple(added), folder, url, count)


# reading


def _read(api: Any, name: str, revision: str | None) -> _Repo:
    info = api.model_info(name, revision=revision, files_metadata=True)
    files = {
        file.rfilename: str(file.lfs.sha256) if file.lfs else None for file in info.siblings or ()
    }

    def text(path: str) -> str:
        place = api.hf_hub_download(name, path, revision=info.sha)
        return Path(place).read_text(encoding="utf-8", errors="replace")

    try:
        said, _ = card.split(text(CARD)) if CARD in files else ({}, "")
    except ValueError:
        said = {}
    manifest = _document(text(MANIFEST), name) if MANIFEST in files else None
    index = _document(text(INDEX), name).get("weight_map") if INDEX in files else None
    named = sorted({str(v) for v in index.values()}) if isinstance(index, dict) else []
    return _Repo(name, str(info.sha), files, said, manifest, named)


def _document(text: str, name: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise PublishError(f"{name}: its manifest or index is damaged; ask its authors") from exc
    return found if isinstance(found, dict) else {}


def _check_files(found: _Repo, allow_pickle: bool) -> None:
    for path in found.files:
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or not parts:
            raise PublishError(f"{found.name} has a file that would leave the folder: {path!r}")
    pickled = [path for path in found.files if path.endswith(_PICKLED)]
    if pickled and not allow_pickle:
        raise PublishError(
            f"{found.name} holds {', '.join(pickled[:3])}, which can run code when read; if you"
            " trust its authors: --allow-pickle"
        )


def _fetch(api: Any, found: _Repo, folder: Path) -> int:
    with appearing(folder) as partial:
        api.snapshot_download(found.name, revision=found.commit, local_dir=partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        if found.fingerprint and fingerprint_of(partial) != found.fingerprint:
            raise PublishError(f"{found.name}: the files are not what the Hub says; try again")
        return sum(1 for path in partial.rglob("*") if path.is_file())


# recording


def _from_manifest(book: Registry, found: _Repo, place: str) -> tuple[list[str], str]:
    """Record a manifest's family; what the registry knows already stays as it is."""
    said = found.manifest or {}
    items = {
        section: [e for e in said.get(section) or () if isinstance(e, dict) and "absent" not in e]
        for section in _SECTIONS
    }
    own = _own(found, items["checkpoints"])
    names = [str(entry.get("name")) for entry in items["checkpoints"]]
    known = {name: book.get(name) if book.exists() else None for name in names}
    kept = []
    for entry in items["checkpoints"]:
        there = known[str(entry.get("name"))]
        theirs = entry.get("fingerprint")
        if there is not None and there.fingerprint and theirs and there.fingerprint != theirs:
            raise RegistryError(
                f"{found.name} calls {theirs[:12]} {entry['name']!r}, which is"
                f" {there.fingerprint[:12]} here; pull it into another registry: --registry"
            )
        if there is None:
            kept.append({**entry, **({"source": place} if entry is own else {})})
    added = [str(entry["name"]) for entry in kept]
    told = {*added, own["name"]}
    ours = {_under(s.to_json()) for s in book.scores(own["name"])} if known[own["name"]] else set()
    benchmarks = {b.name for b in book.benchmarks()} if book.exists() else set()
    document = {
        "omnireg": said.get("omnireg"),
        "benchmarks": [b for b in items["benchmarks"] if b.get("name") not in benchmarks],
        "checkpoints": kept,
        "runs": [run for run in items["runs"] if run.get("checkpoint") in added],
        "scores": [
            score
            for score in items["scores"]
            if score.get("checkpoint") in told and _under(score) not in ours
        ],
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pulled.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        try:
            book.apply(file)
        except RegistryError as exc:
            reason = str(exc).replace(str(file), MANIFEST)
            raise RegistryError(f"{found.name}: {reason}") from exc
    return sorted(added), str(own["name"])


def _under(score: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a score is of, without its value; a row of ours is not replaced by theirs."""
    conditions = ("n_shot", "filter", "split", "evaluator", "evaluator_version", "source")
    return (
        score.get("checkpoint"), score.get("benchmark"), score.get("metric"),
        *(score.get(name) for name in conditions), repr(sorted((score.get("setup") or {}).items())),
    )  # fmt: skip


def _own(found: _Repo, checkpoints: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's entry for the repository's own weights."""
    for entry in checkpoints:
        if str(entry.get("source", "")).partition("@")[0] == found.name:
            if found.fingerprint and entry.get("fingerprint") != found.fingerprint:
                raise PublishError(
                    f"{found.name} says its weights are {str(entry.get('fingerprint'))[:12]}, the"
                    f" Hub says {found.fingerprint[:12]}: they were changed without publishing anew"
                )
            return entry
    raise PublishError(f"{found.name}: its {MANIFEST} does not name it; ask its authors")


def _from_cards(
    api: Any, book: Registry, found: _Repo, place: str, depth: int
) -> tuple[list[str], str]:
    """Record a repository that we never published: its card, and its parents' cards."""
    added: list[str] = []
    own = _record(api, book, found, place, depth, added, frozenset({found.name}))
    return added, own


def _record(
    api: Any, book: Registry, found: _Repo, place: str, depth: int, added: list[str],
    above: frozenset[str],
) -> str:  # fmt: skip
    parents = []
    relation = str(found.card.get("base_model_relation") or "")
    bases = [str(base) for base in _listed(found.card.get("base_model"))]
    merged = relation == "merge" or (not relation and len(bases) > 1)
    for base in bases if depth > 0 else ():
        if base in above:
            continue
        theirs = _maybe(api, base)
        name = base
        if theirs is not None and not _known(book, base):
            where = f"{base}@{theirs.commit}"
            name = _record(api, book, theirs, where, depth - 1, added, above | {base})
        parents.append(Parent(name, Role.MODEL if merged else Role.FINETUNED_FROM))
    same = book.by_fingerprint(found.fingerprint) if found.fingerprint and book.exists() else []
    if same:
        return same[0].name
    kind = Kind.MERGED if merged else Kind.FINETUNED if bases else Kind.BASE
    with_rows = [p for p in parents if _known(book, p.name)]
    book.add_checkpoint(
        found.name, kind=kind, fingerprint=found.fingerprint, source=place, parents=with_rows,
    )  # fmt: skip
    added.append(found.name)
    for score in _scores(found.card):
        book.add_score(found.name, source=f"{api.endpoint}/{found.name}", **score)
    return found.name


def _known(book: Registry, name: str) -> bool:
    return book.exists() and book.get(name) is not None


def _maybe(api: Any, base: str) -> _Repo | None:
    """Return a parent's repository; None if it cannot be read."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return _read(api, base.partition("@")[0], base.partition("@")[2] or None)
    except (HfHubHTTPError, HFValidationError, PublishError):
        return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _scores(said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the numbers of a card's ``model-index``; what is no number is left out."""
    for entry in _listed(said.get("model-index")):
        for result in entry.get("results") or () if isinstance(entry, dict) else ():
            dataset = result.get("dataset") or {}
            for metric in result.get("metrics") or ():
                value = metric.get("value")
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield {
                        "benchmark": str(dataset.get("name") or dataset.get("type") or "unnamed"),
                        "value": float(value),
                        "metric": str(metric.get("name") or metric.get("type") or "score"),
                        "filter": dataset.get("config") and str(dataset["config"]),
                        "split": dataset.get("split") and str(dataset["split"]),
                    }
