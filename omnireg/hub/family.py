"""The family of a repository that we never published: followed from card to card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from omnireg.boundary.text import shown
from omnireg.hub.claims import Claims
from omnireg.hub.client import Unreadable
from omnireg.hub.files import CARD
from omnireg.hub.metadata import Card, parents, read_card, scores
from omnireg.hub.repository import Damaged, Repository, read_repository
from omnireg.registry import Kind, Role
from omnireg.registry.declare.manifest import (
    BenchmarkItem,
    CheckpointItem,
    ParentItem,
    ScoreItem,
)
from omnireg.registry.declare.reading import Declared, Place

#: so many are asked for one family
REPOSITORIES = 500


@dataclass
class _Family:
    """What was read: repositories and cards by name, who names whom, and what is left out."""

    repos: dict[str, Repository] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)
    edges: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    is_cut: bool = False

    def take(self, repo: Repository) -> None:
        """Take in a repository and its card.

        Raises:
            PublishError: its documents cannot be read.
        """
        _ = repo.fingerprint
        card, odd = read_card(repo)
        self.named[repo.name], left_out = parents(card, repo)
        self.repos[repo.name], self.cards[repo.name] = repo, card
        self.lines += [*odd, *left_out]

    def expand(self, child: Repository, is_known: Callable[[str], bool]) -> list[Repository]:
        """Read the parents of a repository that nobody knows yet, and return them."""
        self.edges[child.name] = self.named[child.name]
        return [
            found
            for base in self.named[child.name]
            if base not in self.repos and base not in self.unread and not is_known(base)
            if (found := self._read(base, child)) is not None
        ]

    def _read(self, base: str, child: Repository) -> Repository | None:
        if len(self.repos) == REPOSITORIES:
            self.is_cut = True
            self.unread.add(base)
            return None
        try:
            found = read_repository(child.api, base)
            self.take(found)
        except (Unreadable, Damaged) as exc:
            self.unread.add(base)
            said = shown(str(exc), 300)
            self.lines.append(f"{child.where(CARD)}: the parent {base} is left out: {said}")
            return None
        return found


def from_cards(repo: Repository, depth: int, is_known: Callable[[str], bool]) -> Claims:
    """Return what the card of a repository says, and those of its parents.

    Args:
        repo: the repository.
        depth: how many generations to follow.
        is_known: whether a parent is recorded already; those are not asked.

    Raises:
        PublishError: the Hub cannot be asked.
    """
    family = _Family()
    family.take(repo)
    level, left = [repo], depth
    while level and left:
        level = [parent for child in level for parent in family.expand(child, is_known)]
        left -= 1
    if family.is_cut:
        family.lines.append(
            f"{repo.name}: its family has more than {REPOSITORIES} repositories; the others are"
            " left out"
        )
    edges = _without_cycles(repo.name, family.edges)
    numbers = [each for found in family.repos.values() for each in _numbers(family, found)]
    known = {base for named in edges.values() for base in named if base not in family.repos}
    there = {*family.repos, *filter(is_known, known)}
    items: list[Declared] = [
        (_checkpoint(found, family.cards[name], [b for b in edges[name] if b in there]), _at(found))
        for name, found in family.repos.items()
    ]
    own = items[0][0]
    assert isinstance(own, CheckpointItem)
    benchmarks = {item.benchmark: at for item, at in numbers}
    items += [(BenchmarkItem.model_validate({"name": name}), at) for name, at in benchmarks.items()]
    return Claims(repo, own, (*items, *numbers), tuple(family.lines), by_bytes=True)


def _at(repo: Repository) -> Place:
    return Place(repo.where(CARD), 1)


def _numbers(family: _Family, repo: Repository) -> list[tuple[ScoreItem, Place]]:
    found, lines = scores(family.cards[repo.name], repo)
    family.lines += lines
    return [(item, _at(repo)) for item in found]


def _checkpoint(repo: Repository, card: Card, bases: list[str]) -> CheckpointItem:
    merged = card.relation == "merge" or (not card.relation and len(card.parents) > 1)
    kind = Kind.MERGED if merged else Kind.FINETUNED if card.parents else Kind.BASE
    role = Role.MODEL if merged else Role.FINETUNED_FROM
    said = {
        "name": repo.name,
        "kind": kind,
        "fingerprint": repo.fingerprint,
        "source": f"{repo.name}@{repo.commit}",
        "parents": [ParentItem(name=base, role=role) for base in bases],
    }
    return CheckpointItem.model_validate(said)


def _without_cycles(root: str, named: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return who names whom, without those that lead back to a child."""
    kept: dict[str, list[str]] = {root: []}
    path = [(root, iter(named.get(root, ())))]
    while path:
        child, rest = path[-1]
        base = next(rest, None)
        if base is None:
            path.pop()
        elif base not in {name for name, _ in path}:
            kept[child].append(base)
            if base not in kept:
                kept[base] = []
                path.append((base, iter(named.get(base, ()))))
    return kept
