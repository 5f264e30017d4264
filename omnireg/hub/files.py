"""The files of a publication: what is here, and how it differs from what is there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

from omnireg.boundary import pickles
from omnireg.checkpoints.digests import file_sha256
from omnireg.errors import CheckpointError, PublishError, to_type
from omnireg.hub.lineage import Dossier
from omnireg.merging.verifying import changes
from omnireg.plugins.host import FILE_VERSION
from omnireg.recording import files_of
from omnireg.registry import Checkpoint

CARD, RECIPE, MANIFEST = "README.md", "recipe.yml", "omnireg.manifest.yaml"
#: in bytes; a family has less to tell, and reading more takes minutes
LONGEST_MANIFEST = 8 << 20
#: the voices of Qwen2.5-Omni come as a pickle alone
PICKLED_VOICES = "spk_dict.pt"
_OURS = (".safetensors", ".safetensors.index.json")
#: where a single-file plugin goes
_PLUGINS = "plugins"


class State(StrEnum):
    """What a commit does to a file."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    DELETED = "deleted"


@dataclass(frozen=True)
class Item:
    """A file of the plan; its content is a path or text, or nothing if it is deleted."""

    path: str
    state: State
    size: int
    content: Path | bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the file as a JSON object."""
        return {"path": self.path, "state": str(self.state), "bytes": self.size}


def plugin_file(found: Dossier, file: Path | None) -> dict[str, Path | bytes]:
    """Return the single-file plugin of a merge by its path in the repository.

    Raises:
        PublishError: the merge used one that was not given, or another one.
    """
    run = found.run
    version = str(run.strategy_version) if run else ""
    if run is None or not version.startswith(FILE_VERSION):
        if file is not None:
            raise PublishError(f"{found.record.name} was not merged with a single-file plugin")
        return {}
    name, digest = str(run.strategy_distribution), version.removeprefix(FILE_VERSION)
    if file is None:
        raise PublishError(
            f"{found.record.name} was merged with the single-file plugin {name}"
            f" ({digest[:12]}), which nobody else has; publish it along: --plugin {name}"
        )
    try:
        content = file.read_bytes()
    except OSError as exc:
        raise PublishError(f"cannot read plugin {file}: {exc.strerror}") from exc
    if sha256(content).hexdigest() != digest:
        raise PublishError(
            f"{file} is not the plugin that {found.record.name} was merged with ({digest[:12]}); it"
            " was changed since: merge again, or find the old one"
        )
    return {f"{_PLUGINS}/{Path(name).name}": content}


def folder_of(record: Checkpoint) -> Path:
    """Return the folder on this machine that holds a checkpoint as it was recorded.

    Raises:
        CheckpointError: its files are gone, elsewhere, or are no longer what was recorded.
    """
    if record.source and not Path(record.source).is_absolute():
        adding = to_type("add", "FOLDER", "--name", record.name)
        raise CheckpointError(
            f"{record.name} is {record.source} on the Hub, not a folder here; type: {adding}"
        )
    folder = files_of(record)
    if changed := list(changes(record, folder)):
        adding = to_type("add", folder, "--name", record.name)
        raise CheckpointError(
            f"{folder} is not what was recorded as {record.name}: {', '.join(changed[:8])}; if the"
            f" changes are yours, record them: {adding}"
        )
    return folder


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file to publish by its path in the repository.

    Raises:
        PublishError: one of them is pickled, by its name or by its content.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not path.is_file() or hidden or relative.as_posix() in (CARD, RECIPE, MANIFEST):
            continue
        what = pickles.of_name(path.name) or pickles.of_file(path, PublishError)
        if what and path.name != PICKLED_VOICES:
            raise PublishError(
                f"{path} is pickled ({what}), which can run code when read; remove it, or save"
                " safetensors"
            )
        yield relative.as_posix(), path


def compared(contents: Mapping[str, Path | bytes], there: Mapping[str, str]) -> Iterator[Item]:
    """Yield what a commit does to every file, given what is there: path → identity on the Hub."""
    for path, content in contents.items():
        state = State.NEW
        if path in there:
            state = State.SAME if is_same(content, there[path]) else State.CHANGED
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        yield Item(path, state, size, content)
    for path in there:
        # weights that are no part of this checkpoint would be taken for some of it
        if path.endswith(_OURS) and path not in contents:
            yield Item(path, State.DELETED, 0)


def is_same(content: Path | bytes | None, identity: str) -> bool:
    """Whether a content is what the Hub says it has: by sha256, or by the id of a git blob."""
    if content is None:
        return False
    if isinstance(content, Path) and len(identity) == 64:
        return file_sha256(content) == identity
    data = content if isinstance(content, bytes) else content.read_bytes()
    return sha1(b"blob %d\0" % len(data) + data).hexdigest() == identity
