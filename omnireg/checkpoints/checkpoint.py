"""A checkpoint: where it is, what its headers say, and what identifies it.

A reference is a local folder or ``org/name[@revision]`` on the Hub. Configs and headers are read
first; weights of a Hub checkpoint are downloaded only when somebody asks for them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omnireg.boundary import pickles
from omnireg.boundary.documents import read_json
from omnireg.boundary.files import State
from omnireg.boundary.names import part
from omnireg.checkpoints.contents import PACKAGE_INDEX as PACKAGE_INDEX
from omnireg.checkpoints.digests import combine_digests as combine_digests
from omnireg.checkpoints.digests import file_sha256, fresh_sha256, known_sha256
from omnireg.checkpoints.remote_headers import stand_in
from omnireg.checkpoints.shards import TensorHeader, read_header
from omnireg.errors import CheckpointError

_AGENT = "omnireg"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "spk_dict.pt", "LICENSE*")
#: keys of a config whose numbers are modules that have to be built, and how many are believed
_COUNTS = re.compile(r"(layers?|depths?|blocks?|experts)$")
_MOST_LAYERS = 10_000
_MOST_TOKENS = 1 << 31
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors weights with a ``config.json``, as one user referred to it.

    ``remote`` holds the Hub's (file name, sha256) pairs of weights that were not downloaded;
    ``empty`` says that the shards here have headers alone.
    """

    ref: str
    folder: Path
    remote: tuple[tuple[str, str], ...] = ()
    empty: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        config = self._json("config.json", infinite=True)
        if odd := next(_unbelievable(config), None):
            raise CheckpointError(f"{self.ref}: config.json says {odd}; no model has so many")
        return config

    @property
    def architecture(self) -> str:
        """The class name in ``config.json``."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise CheckpointError(f"{self.ref}: config.json names no model class (architectures)")
        return names[0]

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files that the index names, or the single one."""
        if (self.folder / INDEX).exists():
            names = sorted(set(self._weight_map.values()))
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise CheckpointError(
                    f"{self.ref}: {', '.join(missing)} is named by {INDEX} but is not there;"
                    " download or copy it again"
                )
            return [self.folder / name for name in names]
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if any(pickles.of_name(path.name) for path in self.folder.glob("*")):
            raise CheckpointError(
                f"{self.ref} holds pickled weights, which can run code when read; save it as"
                " safetensors first (model.save_pretrained)"
            )
        raise CheckpointError(f"{self.ref} has no {SINGLE} and no {INDEX}")

    @cached_property
    def tensors(self) -> dict[str, TensorHeader]:
        """Every tensor by name, from the shards' headers alone."""
        found: dict[str, TensorHeader] = {}
        for file in self.weight_files:
            found.update(read_header(file))
        if (self.folder / INDEX).exists():
            for name, shard in self._weight_map.items():
                if name not in found or found[name].file.name != shard:
                    raise CheckpointError(
                        f"{self.ref}: {INDEX} promises tensor {name} in {shard}, which lacks it"
                    )
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights: equal bytes under equal file names have equal fingerprints."""
        if self.remote:
            return combine_digests(self.remote)
        # of those bytes whose headers were read, if they were
        states = self._states if "tensors" in vars(self) else {}
        return combine_digests(
            (file.name, file_sha256(file, states.get(file))) for file in self.weight_files
        )

    @property
    def _states(self) -> dict[Path, State | None]:
        return {tensor.file: tensor.state for tensor in self.tensors.values()}

    def check_unchanged(self) -> None:
        """Make sure that the weights are those whose headers were read.

        Raises:
            InputChanged: names the file that changed.
        """
        for file, state in self._states.items():
            if state is not None and file.is_file():
                state.refuse_other(State.of(file), file)

    @property
    def known_fingerprint(self) -> str | None:
        """The fingerprint, where it is known without reading weights."""
        if self.remote:
            return self.fingerprint
        known = [(file.name, known_sha256(file)) for file in self.weight_files]
        digests = [(name, digest) for name, digest in known if digest]
        return combine_digests(digests) if len(digests) == len(known) else None

    def fresh_fingerprint(self) -> str:
        """Return the fingerprint of the bytes as they are now, whatever is remembered."""
        return combine_digests((file.name, fresh_sha256(file)) for file in self.weight_files)

    @cached_property
    def side_files(self) -> list[Path]:
        """Everything that travels with the weights: config, tokenizer, processor, templates."""
        return sorted(
            path
            for pattern in _SIDE_FILES
            for path in self.folder.glob(pattern)
            if path.is_file() and path.name not in (INDEX, "omnireg.json")
        )

    @property
    def text_files(self) -> list[Path]:
        """The side files that a text model has a use for: no processor of images or sounds."""
        return [f for f in self.side_files if not f.name.endswith(("processor_config.json", ".pt"))]

    @cached_property
    def vocabulary(self) -> "Vocabulary | None":
        """The tokenizer's tokens by id, or None where the folder has no tokenizer."""
        if not any((self.folder / name).is_file() for name in _TOKENIZER_FILES[:3]):
            return None
        if (self.folder / "tokenizer.json").is_file():
            return _vocabulary_of(self._json("tokenizer.json"), self.ref)
        if (self.folder / "vocab.json").is_file():
            model = self._json("vocab.json")
            added = self.folder / "added_tokens.json"
            extra = self._json(added.name) if added.is_file() else {}
            try:
                return _invert(model, extra)
            except ValueError as exc:
                raise CheckpointError(f"{self.ref}: vocab.json is damaged ({exc})") from exc
        return _slow_vocabulary(self.folder, self.ref)

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        found = self._json(INDEX).get("weight_map")
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.ref}: {INDEX} is damaged: it has no weight_map")
        for name in found.values():
            part(name, f"{self.ref}: {INDEX}")
        return dict(found)

    def _json(self, name: str, *, infinite: bool = False) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(f"{self.ref} is not a checkpoint: it has no {name}")
        data = read_json(path, infinite=infinite)
        if not isinstance(data, dict):
            raise CheckpointError(
                f"{path} is damaged (it holds no JSON object); download or copy it again"
            )
        return data


@dataclass(frozen=True)
class Vocabulary:
    """Token strings by id; ``size`` counts the ids before the first added token beyond them."""

    tokens: Mapping[int, str]
    learned: int

    @property
    def length(self) -> int:
        """One more than the largest id that has a token."""
        return max(self.tokens, default=-1) + 1


def _unbelievable(config: Any, key: str = "") -> Iterator[str]:
    """Yield what a config claims of layers and experts that would take for ever to build."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _unbelievable(value, str(name))
    elif isinstance(config, list):
        for value in config:
            yield from _unbelievable(value, key)
    elif isinstance(config, int) and _COUNTS.search(key) and config > _MOST_LAYERS:
        yield f"{key}: {config}"


def open_checkpoint(ref: str, *, weights: bool = True, headers: bool = False) -> Checkpoint:
    """Resolve a reference to a folder, downloading from the Hub what is not there yet.

    Args:
        ref: a local folder, or ``org/name[@revision]``.
        weights: also fetch the safetensors files of a Hub checkpoint.
        headers: without weights, fetch their headers: enough for a plan.

    Raises:
        CheckpointError: no such folder, no such repository, or the Hub cannot be reached.
    """
    folder = Path(ref).expanduser()
    if folder.is_dir():
        if (folder / PACKAGE_INDEX).is_file():
            raise CheckpointError(
                f"{ref} is a decoupled package, not a checkpoint; take a model out of it: omnireg"
                " mmer extract"
            )
        checkpoint = Checkpoint(ref, folder.resolve())
        _ = checkpoint.config
        return checkpoint
    if folder.exists():
        raise CheckpointError(f"{ref} is a file; give the folder of a checkpoint")
    if ref.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(ref):
        raise CheckpointError(
            f"there is no folder {ref} (relative paths start at {Path.cwd()}); give a checkpoint"
            " folder or a Hub id such as org/name"
        )
    return _from_hub(ref, weights, headers)


def _from_hub(ref: str, weights: bool, headers: bool) -> Checkpoint:
    import huggingface_hub

    repo, _, revision = ref.partition("@")
    patterns = [*_SIDE_FILES, *(["*.safetensors"] if weights else [])]
    with _hub_errors(ref):
        client = huggingface_hub.HfApi(library_name=_AGENT)
        info = client.model_info(repo, revision=revision or None, files_metadata=True)
        folder = huggingface_hub.snapshot_download(
            repo, revision=info.sha, allow_patterns=patterns, library_name=_AGENT
        )
    digests = {
        file.rfilename: str(file.lfs.sha256)
        for file in info.siblings or ()
        if file.lfs is not None and file.rfilename.endswith(".safetensors")
    }
    checkpoint = Checkpoint(ref, Path(folder))
    if weights:
        return checkpoint
    named = set(checkpoint._weight_map.values()) if (Path(folder) / INDEX).exists() else {SINGLE}
    if not named <= set(digests):
        raise CheckpointError(f"{ref} has no safetensors weights on the Hub")
    found = replace(checkpoint, remote=tuple((n, digests[n]) for n in sorted(named)))
    if headers:
        with _hub_errors(ref):
            place = stand_in(client, repo, str(info.sha), sorted(named), Path(folder))
        return replace(found, folder=place, empty=True)
    return found


@contextmanager
def _hub_errors(ref: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"there is no folder {ref} here and no such model on the Hub (or it is private: run"
            " hf auth login)"
        ) from exc
    except HfHubHTTPError as exc:
        status = getattr(exc.response, "status_code", "no answer")
        raise CheckpointError(f"the Hub refused {ref} ({status}); try again later") from exc
    except (OSError, RuntimeError, ValueError) as exc:
        raise _unreachable(ref, exc) from exc
    except Exception as exc:
        if type(exc).__module__.startswith("httpx"):
            raise _unreachable(ref, exc) from exc
        raise


def _unreachable(ref: str, exc: Exception) -> CheckpointError:
    return CheckpointError(
        f"there is no folder {ref} here, and it could not be fetched from the Hub"
        f" ({type(exc).__name__}); check the spelling and the network, or give a local folder"
    )


def _invert(model: Mapping[str, int], added: Mapping[str, int]) -> Vocabulary:
    ids = [*model.values(), *added.values()]
    if not all(type(index) is int and 0 <= index < _MOST_TOKENS for index in ids):
        raise ValueError("an id of a token is no number from 0 on")
    tokens = {index: token for token, index in {**model, **added}.items()}
    return Vocabulary(tokens, max(model.values(), default=-1) + 1)


def _vocabulary_of(tokenizer: dict[str, Any], ref: str) -> Vocabulary:
    try:
        vocab = tokenizer["model"]["vocab"]
        if isinstance(vocab, list):
            vocab = {entry[0]: index for index, entry in enumerate(vocab)}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or ()}
        return _invert(vocab, added)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as exc:
        raise CheckpointError(f"{ref}: tokenizer.json is damaged ({exc!r})") from exc


def _slow_vocabulary(folder: Path, ref: str) -> Vocabulary:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as exc:  # what the tokenizers library raises has no class of its own
        said = " ".join(str(exc).split())
        raise CheckpointError(f"{ref}: its tokenizer cannot be loaded ({said})") from exc
    return _invert(tokenizer.get_vocab(), {})
