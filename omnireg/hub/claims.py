"""What a repository says of checkpoints, and how it becomes rows: it can add, never change.

The fingerprint of the repository's own weights is the Hub's or that of the fetched bytes, never the
manifest's word. What a manifest says of the fingerprints of ancestors stays the publisher's claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnireg.boundary.text import shown
from omnireg.errors import PublishError, RegistryError
from omnireg.hub.files import LONGEST_MANIFEST, MANIFEST
from omnireg.hub.lineage import on_hub
from omnireg.hub.repository import Damaged, Repository
from omnireg.registry import Checkpoint, Registry, Score
from omnireg.registry.declare.manifest import (
    BenchmarkItem,
    CheckpointItem,
    Item,
    ParentItem,
    RunItem,
    ScoreItem,
)
from omnireg.registry.declare.reading import Declared, Place, read
from omnireg.registry.scores import Conditions


@dataclass(frozen=True)
class Claims:
    """What a repository says.

    Attributes:
        repo: the repository.
        own: what it says of its own weights.
        items: all that it says, with the places where it does.
        lines: what to tell of it, above all what is left out.
        by_bytes: whether checkpoints that are recorded under other names are found by their bytes.
    """

    repo: Repository
    own: CheckpointItem
    items: tuple[Declared, ...]
    lines: tuple[str, ...] = ()
    by_bytes: bool = False

    def compare(self, fingerprint: str | None, who: str) -> None:
        """Refuse a repository that says of its weights what is not so.

        Raises:
            PublishError: the fingerprint that ``who`` says is another one.
        """
        said = self.own.fingerprint
        if fingerprint and said and fingerprint != said:
            which = ", ".join(self.repo.changed) or "they"
            raise PublishError(
                f"{self.repo.name} says its weights are {said[:12]}, {who} {fingerprint[:12]}:"
                f" {which} changed without publishing anew"
            )


def from_manifest(repo: Repository) -> Claims:
    """Return what the manifest in a repository says.

    Raises:
        Damaged: it cannot be read, or does not name the repository.
        PublishError: it cannot be fetched.
        RegistryError: it says what a manifest cannot say; names the line.
    """
    where = repo.where(MANIFEST)
    file = repo.document(MANIFEST, LONGEST_MANIFEST)
    try:
        found = [(item, Place(where, at.line)) for item, at in read([file])]
    except RegistryError as exc:
        raise RegistryError(shown(str(exc).replace(str(file), where), 1000)) from exc
    items = [(_published(item, repo), at) for item, at in found if not _absent(item)]
    named = (item for item, _ in items if isinstance(item, CheckpointItem))
    own = next((item for item in named if _is_of(item.source, repo)), None)
    if own is None:
        raise Damaged(f"{where} does not name {repo.name}; ask its authors")
    return Claims(repo, own, tuple(items))


def _absent(item: Item) -> bool:
    return bool(getattr(item, "absent", False))


def _is_of(source: str | None, repo: Repository) -> bool:
    return (source or "").partition("@")[0] == repo.name


def _published(item: Item, repo: Repository) -> Item:
    """Return an item without what makes sense on the publisher's machine alone."""
    if isinstance(item, CheckpointItem):
        source = item.source if item.source and on_hub(item.source) else None
        dropped = dict.fromkeys(("aliases", "created_at", "files"))
        return item.model_copy(update={**dropped, "source": source})
    if isinstance(item, RunItem):
        return item.model_copy(update={"out": repo.name, "machine": "published"})
    return item


# recording


def record(
    book: Registry, claims: Claims, fingerprint: str | None, place: str, *,
    files: Mapping[str, str] | None = None, trial: bool = False,
) -> tuple[str, list[str]]:  # fmt: skip
    """Record what is new of the claims, and the publication, in one transaction.

    Args:
        book: where to record it.
        claims: what the repository says.
        fingerprint: of its weights, from the Hub or from the bytes; None if neither is there.
        place: where the files are, or where on the Hub.
        files: their sha256, if they are here.
        trial: the weights are not there yet, so nothing is compared with them.

    Returns:
        The name of the repository's checkpoint, and the names that were added.

    Raises:
        RegistryError: a name means something else in the registry, or the claims contradict
            themselves; nothing was recorded.
    """
    here = {"fingerprint": fingerprint, "source": place, "files": files and dict(files)}
    said = claims.own.model_copy(update=here)
    with book.transaction():
        plan = _Plan(book, claims, said, trial)
        book.apply_items(plan.items)
        name = plan.names[said.name]
        book.add_publication(name, claims.repo.name, claims.repo.commit, url=claims.repo.url)
    return name, sorted(plan.added)


class _Plan:
    """The items to apply, worked out inside of a transaction."""

    def __init__(self, book: Registry, claims: Claims, own: CheckpointItem, trial: bool) -> None:
        self._book, self._claims, self._own, self._trial = book, claims, own, trial
        checkpoints = [item for item, _ in claims.items if isinstance(item, CheckpointItem)]
        self._known = {item.name: self._find(item) for item in checkpoints}
        #: of checkpoints: what they are called there → what they are called here
        self.names = {name: row.name if row else name for name, row in self._known.items()}
        self.added = [name for name, row in self._known.items() if row is None]
        self._metrics = {each.name: each.metric for each in book.benchmarks()}
        self._ours = self._scores_here()
        self.items = [(kept, at) for item, at in claims.items if (kept := self._kept(item))]

    def _find(self, item: CheckpointItem) -> Checkpoint | None:
        if not self._claims.by_bytes:
            return self._book.get(item.name)
        fingerprint = self._own.fingerprint if self._is_own(item) else item.fingerprint
        same = self._book.by_fingerprint(fingerprint) if fingerprint else []
        return named(self._book, item.name) or next(iter(same), None)

    def _is_own(self, item: CheckpointItem) -> bool:
        return item.name == self._own.name

    def _scores_here(self) -> set[tuple[str, str]]:
        row = self._known[self._own.name]
        return (
            {_measured(score, score.metric) for score in self._book.scores(row.name)}
            if row
            else set()
        )

    def _kept(self, item: Item) -> Item | None:
        """Return what is to be applied of an item, if anything."""
        match item:
            case CheckpointItem():
                return self._checkpoint(item)
            case BenchmarkItem():
                return None if item.name in self._metrics else item
            case RunItem():
                return item if item.checkpoint in self.added else None
            case ScoreItem():
                return self._score(item)
        return None

    def _checkpoint(self, item: CheckpointItem) -> CheckpointItem | None:
        there = self._known[item.name]
        if there is None:
            mine = self._own if self._is_own(item) else item
            return mine.model_copy(update={"parents": self._parents(item)})
        if self._is_own(item):
            return self._completed(there)
        theirs = None if self._claims.by_bytes else item.fingerprint
        if there.fingerprint and theirs and there.fingerprint != theirs:
            raise self._other(there, theirs)
        return None

    def _parents(self, item: CheckpointItem) -> list[ParentItem] | None:
        if not self._claims.by_bytes or item.parents is None:
            return item.parents
        # two that a card names may be one that is recorded
        called = {self.names.get(each.name, each.name): each for each in item.parents}
        return [each.model_copy(update={"name": name}) for name, each in called.items()]

    def _completed(self, there: Checkpoint) -> CheckpointItem:
        """Return what is new of the repository's own checkpoint, which is recorded already.

        Raises:
            RegistryError: it cannot be seen to be the same.
        """
        fingerprint, place = self._own.fingerprint, self._own.source or ""
        if fingerprint and there.fingerprint and there.fingerprint != fingerprint:
            raise self._other(there, fingerprint)
        if there.fingerprint is None or (fingerprint is None and not self._trial):
            self._check_same(there)
        moves = Path(place).is_absolute() and not Path(there.source or "").is_dir()
        is_here = moves or not there.source or there.source == place
        return CheckpointItem.model_validate(
            {
                "name": there.name,
                "fingerprint": None if there.fingerprint else fingerprint,
                "source": place if is_here else None,
                "files": self._own.files if is_here else None,
            }
        )

    def _check_same(self, there: Checkpoint) -> None:
        """Refuse a record that has a fingerprint where the repository has none, or the reverse."""
        repo = self._claims.repo
        published = self._book.publications(there.name)
        if there.fingerprint is None:
            whose = {there.name, (there.source or "").partition("@")[0]}
            if repo.name not in whose.union(each.repo for each in published):
                raise RegistryError(
                    f"{repo.name} calls its checkpoint {there.name!r}, which is something here, and"
                    " nothing recorded says that both are the same; pull it into another registry:"
                    " --registry"
                )
        elif (repo.name, repo.commit) not in {(each.repo, each.commit) for each in published}:
            raise RegistryError(
                f"{repo.name} calls its checkpoint {there.name!r}, which is"
                f" {there.fingerprint[:12]} here, and what it holds cannot be compared with that;"
                " fetch its files, or pull it into another registry: --registry"
            )

    def _other(self, there: Checkpoint, theirs: str) -> RegistryError:
        return RegistryError(
            f"{self._claims.repo.name} calls {theirs[:12]} {there.name!r}, which is"
            f" {(there.fingerprint or '')[:12]} here; pull it into another registry: --registry"
        )

    def _score(self, item: ScoreItem) -> ScoreItem | None:
        if item.checkpoint not in {*self.added, self._own.name}:
            return None
        metric = item.metric or self._usual(item.benchmark)
        if item.checkpoint == self._own.name and _measured(item, metric) in self._ours:
            return None
        return item.model_copy(update={"checkpoint": self.names[item.checkpoint]})

    def _usual(self, benchmark: str) -> str:
        said = (
            item.metric
            for item, _ in self._claims.items
            if isinstance(item, BenchmarkItem) and item.name == benchmark
        )
        return self._metrics.get(benchmark) or next(filter(None, said), None) or "score"


def _measured(score: Score | ScoreItem, metric: str) -> tuple[str, str]:
    """Return what a score is of, without its value; a row of ours is not replaced by theirs."""
    under = Conditions(
        metric, score.n_shot, score.filter, score.split, score.evaluator, score.evaluator_version,
        score.source, score.setup or None,
    )  # fmt: skip
    return score.benchmark, under.digest


def named(book: Registry, name: str) -> Checkpoint | None:
    """Return the checkpoint of exactly this name or alias."""
    try:
        found = book.find(name)
    except RegistryError:
        return None
    return found if name in (found.name, *found.aliases) else None
