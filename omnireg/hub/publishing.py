"""Plan, show, commit: a checkpoint becomes one commit of a repository on the Hub."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from omnireg.checkpoints import contents
from omnireg.errors import PublishError
from omnireg.hub import card
from omnireg.hub.client import LOG_IN, Stale, check_name, client, has_token, translated
from omnireg.hub.files import (
    CARD,
    LONGEST_MANIFEST,
    MANIFEST,
    PICKLED_VOICES,
    RECIPE,
    Item,
    State,
    compared,
    files_in,
    folder_of,
    is_same,
    plugin_file,
)
from omnireg.hub.lineage import Dossier, dossier, manifest
from omnireg.hub.repository import LONGEST_CARD, File, Repository, read_repository
from omnireg.hub.results import model_index, result_files
from omnireg.registry import Registry


@dataclass(frozen=True)
class PublicationPlan:
    """What a publish will do.

    Attributes:
        name: of the checkpoint.
        repo: where it goes.
        branch: of the repository.
        private: whether a new repository is private; what an existing one is.
        head: the commit that is there, or None where there is no repository.
        items: every file.
        card_diff: of the card, as ``diff -u`` writes it.
        warnings: what to look at before going on.
    """

    name: str
    repo: str
    branch: str
    private: bool
    head: str | None
    items: tuple[Item, ...]
    card_diff: str
    warnings: tuple[str, ...]
    branch_exists: bool = True

    @property
    def changes(self) -> list[Item]:
        """The files that the commit is about."""
        return [item for item in self.items if item.state is not State.SAME]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as ``omnireg publish --dry-run --json`` prints it."""
        return {
            "name": self.name,
            "repo": self.repo,
            "branch": self.branch,
            "private": self.private,
            "exists": self.head is not None,
            "commit": self.head,
            "files": [item.to_json() for item in self.items],
            "card_diff": self.card_diff,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Receipt:
    """What was published."""

    repo: str
    commit: str
    url: str
    files: int
    pull_request: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as ``omnireg publish --json`` prints it."""
        return {
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "files": self.files,
            "pull_request": self.pull_request,
        }


@dataclass(frozen=True)
class _Remote:
    """A repository as it is: its head, and every file's identity."""

    head: str | None = None
    private: bool | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    branch_exists: bool = True
    card_size: int | None = None


def plan_publication(
    book: Registry,
    name: str,
    repo: str,
    *,
    private: bool = True,
    branch: str = "main",
    licence: str | None = None,
    plugin: Path | None = None,
    look_only: bool = False,
) -> PublicationPlan:
    """Find out what a publish would do; nothing is changed, here or there.

    Args:
        book: the registry that knows the checkpoint.
        name: of the checkpoint.
        repo: ``org/name``.
        private: whether a repository that has to be made is private.
        branch: where the commit goes.
        licence: of the result; else what follows from its parents'.
        plugin: the single-file plugin that it was merged with; published along.
        look_only: the plan will not be carried out, so it takes no token; without one, private
            repositories count as not there.

    Raises:
        RegistryError: the checkpoint is not recorded.
        CheckpointError: its files are gone, or are not what was recorded.
        PublishError: the Hub cannot be asked, or says no.
    """
    check_name(repo)
    found = dossier(book, name)
    folder = folder_of(found.record)
    beside = plugin_file(found, plugin)
    api = client()
    with translated(repo, "looking at"):
        stranger = look_only and not has_token()
        if not stranger:
            api.whoami()
        remote = _look(api, repo, branch)
        old = _old_card(api, repo, remote)
        derived, warnings = _licence(api, found, licence)
    if stranger:
        warnings.append(f"looked at without a token: {repo} may be there and private; {LOG_IN}")
    files: dict[str, Path | bytes] = dict(files_in(folder))
    warnings += _of_voices(files)
    scores = found.scores[found.record.name]
    text = _card(found, repo, old, derived)
    told = manifest(found, repo).encode()
    if len(told) > LONGEST_MANIFEST:
        warnings.append(
            f"{MANIFEST} is longer than {LONGEST_MANIFEST:,} bytes, and omnireg pull reads no"
            " longer ones; record fewer scores or shorter details of its family"
        )
    files |= {CARD: text.encode(), MANIFEST: told}
    if found.recipe:
        files[RECIPE] = found.recipe.encode()
    files |= {path: said.encode() for path, said in result_files(scores).items()}
    files |= beside
    files |= _origin(folder, files)
    items = tuple(compared(files, remote.files))
    return PublicationPlan(
        found.record.name, repo, branch, private if remote.private is None else remote.private,
        remote.head, items, _diff(old, text), tuple(warnings), remote.branch_exists,
    )  # fmt: skip


def _origin(folder: Path, files: Mapping[str, Path | bytes]) -> dict[str, bytes]:
    """Return what the folder says of its files, and of those that are written for the commit.

    It holds true of what is published, whatever was edited since. People may edit the card there.
    """
    written = {path: said for path, said in files.items() if isinstance(said, bytes)}
    told = contents.resealed(folder, {path: written[path] for path in written if path != CARD})
    return {} if told is None else {contents.NAME: told}


def _of_voices(files: Iterable[str]) -> list[str]:
    return [
        f"{path} is published though it is pickled, which can run code when read: Qwen2.5-Omni has"
        " its voices in no other form"
        for path in files
        if PurePosixPath(path).name == PICKLED_VOICES
    ]


def _card(found: Dossier, repo: str, old: str, licence: str | None) -> str:
    """Return the card, the one that is there with what we say put in.

    Raises:
        PublishError: the one that is there cannot be read.
    """
    title = repo.partition("/")[2]
    data = card.metadata(found, licence)
    index = model_index(title, found.scores[found.record.name])
    if index:
        data["model-index"] = index
    try:
        return card.compose(old, data, card.section(found, repo), title)
    except PublishError as exc:
        raise PublishError(f"the card of {repo} cannot be read: {exc}; mend it there") from exc


def publish(
    name: str,
    repo: str,
    *,
    registry: Registry | None = None,
    private: bool = True,
    branch: str = "main",
    licence: str | None = None,
    create_pr: bool = False,
    plugin: Path | None = None,
) -> Receipt:
    """Publish a checkpoint as one commit: :func:`plan_publication`, then :func:`carry_out`.

    ``registry`` is the one that knows the checkpoint; the default one when None.
    """
    book = registry or Registry()
    plan = plan_publication(
        book, name, repo, private=private, branch=branch, licence=licence, plugin=plugin
    )
    return carry_out(book, plan, create_pr=create_pr)


def carry_out(
    book: Registry, plan: PublicationPlan, *, create_pr: bool = False, message: str | None = None
) -> Receipt:
    """Make the one commit of a plan, and record it; without changes nothing is committed.

    If the answer is lost, the repository is looked at again: a commit that landed is a success.

    Raises:
        PublishError: the Hub said no; nothing was published.
    """
    api = client()
    same = plan.head if not plan.changes else None
    with translated(plan.repo, "publishing to"):
        if plan.head is None:
            api.create_repo(plan.repo, private=plan.private, exist_ok=True)
            made = _look(api, plan.repo, plan.branch)
            plan = replace(plan, head=made.head, branch_exists=made.branch_exists)
        if not plan.branch_exists and not create_pr:
            api.create_branch(plan.repo, branch=plan.branch, exist_ok=True)
    if same is not None:
        url = f"{api.endpoint}/{plan.repo}/commit/{same}"
        return _recorded(book, plan, Receipt(plan.repo, same, url, 0), None)
    info = _commit(api, plan, create_pr, message or f"Publish {plan.name} with omnireg")
    return _recorded(book, plan, info, plan.branch)


def _commit(api: Any, plan: PublicationPlan, create_pr: bool, message: str) -> Receipt:
    try:
        with translated(plan.repo, "publishing to"):
            info = api.create_commit(
                plan.repo, list(_operations(plan)), commit_message=message,
                revision=plan.branch, parent_commit=plan.head, create_pr=create_pr or None,
            )  # fmt: skip
            return Receipt(
                plan.repo, info.oid, str(info.commit_url), len(plan.changes), info.pr_url
            )
    except PublishError as error:
        landed = None if create_pr else _landed(api, plan)
        if landed is None:
            raise
        if isinstance(error, Stale) and landed == plan.head:
            raise
        url = f"{api.endpoint}/{plan.repo}/commit/{landed}"
        return Receipt(plan.repo, landed, url, len(plan.changes))


def _landed(api: Any, plan: PublicationPlan) -> str | None:
    """Return the head of the repository if it holds what was to be published."""
    try:
        with translated(plan.repo, "looking at"):
            remote = _look(api, plan.repo, plan.branch)
    except PublishError:
        return None
    if remote.head is None or remote.head == plan.head:
        return None
    for item in plan.items:
        is_there = item.path in remote.files
        if item.state is State.DELETED:
            if is_there:
                return None
        elif not is_there or not is_same(item.content, remote.files[item.path]):
            return None
    return remote.head


def _recorded(book: Registry, plan: PublicationPlan, made: Receipt, branch: str | None) -> Receipt:
    book.add_publication(plan.name, made.repo, made.commit, url=made.url, branch=branch)
    return made


def _operations(plan: PublicationPlan) -> Iterator[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    for item in plan.changes:
        if item.state is State.DELETED:
            yield CommitOperationDelete(item.path)
        else:
            assert item.content is not None
            yield CommitOperationAdd(item.path, item.content)


# what is there


def _look(api: Any, repo: str, branch: str) -> _Remote:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    exists = True
    try:
        try:
            info = api.model_info(repo, revision=branch, files_metadata=True)
        except RevisionNotFoundError:
            exists = False
            info = api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError:
        return _Remote()
    files = {
        file.rfilename: str(file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or ()
    }
    size = next((file.size for file in info.siblings or () if file.rfilename == CARD), None)
    return _Remote(info.sha, bool(info.private), files, exists, size)


def _old_card(api: Any, repo: str, remote: _Remote) -> str:
    if remote.head is None or CARD not in remote.files:
        return ""
    there = Repository(api, repo, remote.head, {CARD: File(remote.card_size)})
    return there.text(CARD, LONGEST_CARD)


def _licence(api: Any, found: Dossier, given: str | None) -> tuple[str | None, list[str]]:
    if given:
        return given, []
    cards: dict[str, str | None] = {}
    for parent in found.record.parents:
        ref = found.hub_ids.get(parent.name)
        cards[parent.name] = _licence_on_hub(api, ref) if ref else None
    return card.derive_licence(card.licences(found, cards))


def _licence_on_hub(api: Any, ref: str) -> str | None:
    """Return what a parent's card says; one that cannot be asked says nothing."""
    name, _, revision = ref.partition("@")
    try:
        repo = read_repository(api, name, revision or None)
        data, _ = card.split(repo.text(CARD, LONGEST_CARD)) if CARD in repo.files else ({}, "")
    except PublishError:
        return None
    said = data.get("license")
    return said if isinstance(said, str) else None


def _diff(old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), "there", "new"
    )
    return "".join(lines)
