"""What transformers itself says of a checkpoint: is it complete, and what is its text config."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omnireg.checkpoints.cache import Question
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.checkpoints.shards import TensorHeader
from omnireg.errors import CheckpointError, OmniregError, PlanError

#: what Hub checkpoints call a class that transformers now has under another name
_RENAMED = {"Qwen2_5OmniModel": "Qwen2_5OmniForConditionalGeneration"}
_NOT_TEXT = ("model_type", "architectures", "transformers_version", "tie_word_embeddings")


def model_class(checkpoint: Checkpoint) -> Any:
    """Return the transformers class of a checkpoint, or None where transformers has none."""
    import transformers

    name = checkpoint.architecture
    return getattr(transformers, _RENAMED.get(name, name), None)


def read_into(cls: Any, folder: Path | None, **how: Any) -> Any:
    """Call ``from_pretrained`` of all classes for one of them.

    A class's own may do more: Qwen2_5Omni's looks for files that are not weights, and cannot
    return what it found.
    """
    import transformers

    return vars(transformers.PreTrainedModel)["from_pretrained"].__func__(cls, folder, **how)


def language_model_of(model: Any) -> str:
    """Return where in a model its language model is: whatever holds the embedding."""
    path = next(name for name, _ in model.named_modules() if name.endswith("embed_tokens"))
    return str(path).rpartition(".")[0]


def check_complete(checkpoint: Checkpoint) -> None:
    """Ask transformers whether the tensors are exactly those that the class expects.

    Only headers are read: the model is built on the meta device and given tensors of their shapes.
    Classes that transformers does not have are left to :mod:`omnireg.backbones.alignment`.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; each is named.
    """
    _check_once(_Sibling(checkpoint, checkpoint.tensors))


class _Sibling:
    """A checkpoint that equals any other of its class, config, and tensors by name and shape.

    What transformers says of one holds for all of them, in other processes too.
    """

    def __init__(self, checkpoint: Checkpoint, headers: Mapping[str, TensorHeader]) -> None:
        self.checkpoint = checkpoint
        tensors = tuple(sorted((n, t.shape) for n, t in headers.items()))
        self._key = (
            checkpoint.architecture,
            json.dumps(checkpoint.config, sort_keys=True),
            tensors,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sibling) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def ask(self, question: str, answer: Callable[[Checkpoint], bool]) -> bool:
        """Return what was found of a sibling before, else find out; errors are not remembered."""
        asked = Question(question, version("transformers"), version("omnireg"), *self._key)
        known = asked.recall()
        if not isinstance(known, bool):
            known = answer(self.checkpoint)
            asked.remember(known)
        return known


@lru_cache(maxsize=64)
def _check_once(sibling: _Sibling) -> bool:
    return sibling.ask("complete", _check)


def _check(checkpoint: Checkpoint) -> bool:
    import torch

    cls: Any = model_class(checkpoint)
    if cls is None:
        return True
    headers = checkpoint.tensors
    with quiet(), config_errors(checkpoint):
        model, info = read_into(
            cls,
            None,
            config=cls.config_class.from_pretrained(checkpoint.folder),
            # not the files: mapping one larger than the memory is refused on some machines
            state_dict={n: torch.empty(t.shape, device="meta") for n, t in headers.items()},
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    written = _NamesOnDisk(headers, model.state_dict())
    problems = {
        "missing": [written.of_missing(name) for name in info["missing_keys"]],
        "unexpected": [
            written.of_present(name)
            for name in info["unexpected_keys"]
            if not name.endswith("rotary_emb.inv_freq")
        ],
        "of another shape": [
            f"{written.of_present(name)} {list(found)} for {list(wanted)}"
            for name, found, wanted in info["mismatched_keys"]
        ],
    }
    said = [f"{what} {', '.join(sorted(names))}" for what, names in problems.items() if names]
    if said:
        raise CheckpointError(
            f"{checkpoint.ref} is not a complete {checkpoint.architecture}: {'; '.join(said)};"
            " download or save it again"
        )
    return True


class _NamesOnDisk:
    """Names of a class's tensors as one checkpoint writes them.

    On-disk forms differ from the class in the modules at the front of a name; which module stands
    for which is read off the tensors that are there.
    """

    def __init__(self, on_disk: Iterable[str], in_memory: Iterable[str]) -> None:
        self._on_disk = set(on_disk)
        self._in_memory = list(in_memory)
        self._fronts = sorted({front for name in self._on_disk for front in _fronts(name)})

    def of_missing(self, name: str) -> str:
        """Return the name that a missing tensor would have."""
        if name.endswith("lm_head.weight"):
            return self._head(name)
        found = ((*self._stand_in(front, name), front) for front in _fronts(name))
        _, disk, memory = max(found, key=lambda entry: entry[0])
        return disk + name.removeprefix(memory)

    def of_present(self, name: str) -> str:
        """Return the tensor on disk that shares the longest tail with a name of the class."""

        def shared(other: str) -> int:
            pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
            return next((i for i, (a, b) in enumerate(pairs) if a != b), len(other))

        return max(sorted(self._on_disk), key=shared)

    def _head(self, name: str) -> str:
        """Return where a head stands: beside the ``model`` that holds the embedding."""
        embeddings = [n for n in self._on_disk if n.endswith("embed_tokens.weight")]
        outside = [n for n in embeddings if not n.startswith("talker.")]
        return head_beside(outside[0]) if outside else name

    def _stand_in(self, memory: str, missing: str) -> tuple[float, str]:
        """Return the front on disk that most often stands for one of the class, and how often."""
        tails = [n.removeprefix(memory) for n in self._in_memory if n.startswith(memory)]
        best = (0.0, memory)
        for disk in self._fronts:
            if disk + missing.removeprefix(memory) in self._on_disk:
                continue  # it would not be missing
            share = sum(disk + tail in self._on_disk for tail in tails) / (len(tails) + 1)
            best = max(best, (share, disk), key=lambda entry: entry[0])
        return best


def _fronts(name: str) -> list[str]:
    """Return the modules around a tensor, outermost first, as prefixes, up to a layer number."""
    parts = name.split(".")[:-1]
    stop = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ["".join(f"{part}." for part in parts[:i]) for i in range(stop + 1)]


def head_beside(embedding: str) -> str:
    """Return the name of the head that belongs to an embedding, in the same on-disk form."""
    parts = embedding.split(".")
    return ".".join([*parts[: parts.index("model") if "model" in parts else 0], "lm_head.weight"])


def ties_head(checkpoint: Checkpoint) -> bool:
    """Whether the class, configured like this checkpoint, uses its embedding as its head.

    transformers decides this from another config key in almost every class, so it is asked. For a
    class it does not have, the config's own word counts, and without one the head is tied.
    """
    return _ties_once(_Sibling(checkpoint, {}))


@lru_cache(maxsize=64)
def _ties_once(sibling: _Sibling) -> bool:
    return sibling.ask("ties its head", _ties)


def _ties(checkpoint: Checkpoint) -> bool:
    import torch

    cls: Any = model_class(checkpoint)
    if cls is None:
        text = checkpoint.config.get("text_config") or {}
        default = text.get("tie_word_embeddings", True)
        return bool(checkpoint.config.get("tie_word_embeddings", default))
    with quiet(), config_errors(checkpoint), torch.device("meta"):
        model = cls(cls.config_class.from_pretrained(checkpoint.folder))
    return any(name.endswith("lm_head.weight") for name in model.all_tied_weights_keys)


@contextmanager
def config_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Translate what transformers raises over a config or over tensors that contradict it.

    Its classes trust a config, so it can be any error at all.
    """
    try:
        yield
    except OmniregError:
        raise
    except Exception as exc:
        said = " ".join(str(exc).split()) or type(exc).__name__
        raise CheckpointError(f"{checkpoint.ref} does not fit its config.json: {said}") from exc


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and log lines off the terminal."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_text_config(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    text_architecture: str,
    vocabulary: int,
    tied: bool,
    dtype: str | None = None,
) -> None:
    """Write ``config.json`` of a checkpoint's language model as a text model of its own.

    ``dtype`` is torch's name for that of the weights; a host's config often states another.

    Raises:
        CheckpointError: transformers cannot make sense of the checkpoint's ``config.json``.
        PlanError: the class of the language model is not known.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with quiet():
        text = _text_config(checkpoint, text_architecture)
        name = text_architecture or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
        if not name:
            raise PlanError(
                f"{checkpoint.ref}: no text class is known for {text.model_type!r}; a plugin's host"
                " layout can name it (text_architecture)"
            )
        if not hasattr(transformers, name):
            raise PlanError(
                f"{checkpoint.ref}: transformers has no {name}; its layout names a text class"
                " (text_architecture) that does not exist"
            )
        cls = getattr(transformers, name).config_class
        known = cls().to_dict()
        data = {k: v for k, v in text.to_dict().items() if k in known and k not in _NOT_TEXT}
        data["rope_parameters"] = _plain_rope(data.get("rope_parameters"))
        data |= {"dtype": dtype} if dtype else {}
        data |= {"tie_word_embeddings": tied, "architectures": [name], "vocab_size": vocabulary}
        written = cls(**data).to_json_string()
    (folder / "config.json").write_text(written, encoding="utf-8")


def _text_config(checkpoint: Checkpoint, text_architecture: str) -> Any:
    import transformers

    with config_errors(checkpoint):
        if checkpoint.config.get("model_type") not in transformers.CONFIG_MAPPING and (
            text := getattr(transformers, text_architecture, None)
        ):
            # a class of other code that adds keys to the text class's config
            return text.config_class.from_dict(checkpoint.config)
        # code beside the weights is never run
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    return config.get_text_config()


def _plain_rope(rope: Any) -> Any:
    """Without image positions, multimodal rotary embedding is the ordinary one."""
    if not isinstance(rope, dict):
        return rope
    plain = {k: v for k, v in rope.items() if not k.startswith("mrope")}
    for key in ("rope_type", "type"):
        if plain.get(key) == "mrope":
            plain[key] = "default"
    return plain
