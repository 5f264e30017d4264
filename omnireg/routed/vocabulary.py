"""One vocabulary for all hosts of a package: which of their rows a token id means.

The base's tokens keep their ids. Every row that only one host has gets an id of its own, however
many hosts have used its number for something else; so each modality has a placeholder of its own.
Rows that stand for no token come last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from omnireg.backbones.alignment import EMBEDDING, HEAD
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.checkpoints.loading import quiet
from omnireg.checkpoints.shards import DTYPE_SIZES
from omnireg.errors import CheckpointError, ConfigError
from omnireg.hookspecs import HostLayout, Sense
from omnireg.package import Model, Package
from omnireg.package.layout import Part


@dataclass(frozen=True)
class Placeholder:
    """Where the media of one modality stand in a text.

    Attributes:
        modality: as the package names it.
        model: the model that takes it in.
        sense: how its host takes it in.
        text: what stands in a prompt, in the joint vocabulary.
        own_text: what the host's own processor calls it.
        id: of ``text`` in the joint vocabulary.
        own_id: of ``own_text`` in the host's.
    """

    modality: str
    model: Model
    sense: Sense
    text: str
    own_text: str
    id: int
    own_id: int


@dataclass(frozen=True)
class Run:
    """Rows of a host's embedding or head that follow each other in the tensor they come from."""

    own: bool
    tensor: str
    start: int
    stop: int


class JointVocabulary:
    """The joint vocabulary of a package.

    Attributes:
        tokenizer: the base's, with every token that only a host has.
        modalities: of the package, in its order.
        placeholders: by modality.
        columns: model → the joint ids of its host's rows; None → those of the base.
        size: number of ids.
        modality: (size,) 1 + the place of an id's modality in ``modalities``; 0 for text.
        base_row: (size,) the base's row of an id; 0 where it has none.
        own_row: (size,) the place of an id among the rows that only one host has, taken model by
            model; -1 where it is none of them.
    """

    def __init__(self, package: Package, layouts: Mapping[str, HostLayout]) -> None:
        """Read tokenizers, and how every host's vocabulary is put together.

        Raises:
            CheckpointError: a tokenizer cannot be read, or a host's placeholder is missing.
        """
        self.package, self._layouts = package, layouts
        self.modalities = tuple(package.modalities)
        self.tokenizer = _tokenizer(package.base.checkpoint)
        #: tokens of the tokenizer by name; those of the base are known by their rows
        self._tokens: dict[str, int] = dict(self.tokenizer.get_vocab())
        self._of_base = set(self._tokens.values())
        rows = {name: self._base_rows(model) for name, model in package.models.items()}
        owned = {m: self._add_tokens(package.models[m], found) for m, found in rows.items()}
        self.placeholders = self._find_placeholders(owned)
        self._number(rows, owned)

    # how the hosts' rows are put together

    def runs(self, model: Model, tensor: str) -> list[Run]:
        """Return the rows of a host's embedding or head in order; a tied head's are the same."""
        ignored = self._layout(model).ignored
        suffix = tensor.removeprefix("model.")
        width = self.package.vector[EMBEDDING].shape[1]
        for file in self.package.host_files(model):
            for piece in file.pieces:
                outside = any(fnmatchcase(piece.name, pattern) for pattern in ignored)
                if f".{piece.name}".endswith(f".{suffix}") and not outside:
                    return list(_runs(piece.parts, width, DTYPE_SIZES[piece.dtype]))
        if tensor == HEAD:
            return self.runs(model, EMBEDDING)
        raise CheckpointError(f"{self.package.host_folder(model)}: no embedding; damaged")

    def base_head(self) -> str:
        """Return the base's tensor that is its head."""
        return HEAD if HEAD in self.package.vector else EMBEDDING

    def _layout(self, model: Model) -> HostLayout:
        if model.architecture not in self._layouts:
            raise CheckpointError(
                f"{self.package.folder}: no layout is known for {model.architecture}; install the"
                " plugin that it was merged with"
            )
        return self._layouts[model.architecture]

    def _base_rows(self, model: Model) -> list[int | None]:
        """Return the base's row that each row of a host is; None where it is the host's own."""
        found: list[int | None] = []
        for run in self.runs(model, EMBEDDING):
            found += [None] * (run.stop - run.start) if run.own else range(run.start, run.stop)
        return found

    # tokens

    def _add_tokens(self, model: Model, rows: Sequence[int | None]) -> dict[int, int]:
        """Add the tokens that only this host has; return host row → joint id."""
        named = self._own_tokens(model)
        own = [row for row, shared in enumerate(rows) if shared is None and row in named]
        return dict(zip(own, self._add([named[row] for row in own], model), strict=True))

    def _own_tokens(self, model: Model) -> Mapping[int, str]:
        folder = self.package.host_folder(model)
        found = Checkpoint(str(folder), folder).vocabulary
        return found.tokens if found else {}

    def _add(self, tokens: Sequence[str], model: Model) -> list[int]:
        """Add tokens and return their ids; a name that is taken is told from it by the model's."""
        from tokenizers import AddedToken

        names = [t if t not in self._tokens else f"{t}@{model.name}" for t in tokens]
        self.tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names])
        ids = [int(i) for i in self.tokenizer.convert_tokens_to_ids(names)]
        self._tokens |= dict(zip(names, ids, strict=True))
        return ids

    def _find_placeholders(self, owned: Mapping[str, dict[int, int]]) -> dict[str, Placeholder]:
        found: dict[str, Placeholder] = {}
        for modality, model in self.package.modalities.items():
            senses = self._layout(model).senses
            if not senses:
                continue
            sense = senses[modality if modality in senses else min(senses)]
            own_id = _placeholder_id(self.package.host_folder(model), sense)
            own_text = self._own_tokens(model).get(own_id, f"<|{modality}|>")
            joint = owned[model.name].get(own_id, own_id)
            if joint in {p.id for p in found.values()} or joint not in self._tokens.values():
                [joint] = self._add([own_text], model)
            text = str(self.tokenizer.convert_ids_to_tokens(joint))
            found[modality] = Placeholder(modality, model, sense, text, own_text, joint, own_id)
        return found

    # ids

    def _number(
        self, rows: Mapping[str, list[int | None]], owned: Mapping[str, dict[int, int]]
    ) -> None:
        """Give every row of the base and of every host an id."""
        count = max(self._tokens.values()) + 1
        base = []
        for row in range(self.package.vector[EMBEDDING].shape[0]):
            base.append(row if row in self._of_base else count)
            count += row not in self._of_base
        columns: dict[str, list[int]] = {}
        own: dict[int, tuple[int, str]] = {}
        for name, found in rows.items():
            columns[name] = []
            for row, shared in enumerate(found):
                if shared is not None:
                    joint = base[shared]
                else:
                    joint = owned[name].get(row, count)
                    count += joint == count
                    own[joint] = (len(own), name)
                columns[name].append(joint)
        self.size = count
        self.columns: dict[str | None, torch.Tensor] = {None: torch.tensor(base)}
        self.columns |= {name: torch.tensor(ids) for name, ids in columns.items()}
        self.base_row = torch.zeros(count, dtype=torch.long)
        self.base_row[self.columns[None]] = torch.arange(len(base))
        self.own_row = torch.full((count,), -1)
        self.modality = torch.zeros(count, dtype=torch.long)
        models = [model.name for model in self.package.modalities.values()]
        for joint, (place, name) in own.items():
            self.own_row[joint] = place
            self.modality[joint] = 1 + models.index(name)
        for placeholder in self.placeholders.values():
            self.modality[placeholder.id] = 1 + self.modalities.index(placeholder.modality)


def _runs(parts: Sequence[Part], width: int, size: int) -> Iterator[Run]:
    for part in parts:
        row = width * size if part.own else width
        yield Run(part.own, part.name, part.start // row, part.stop // row)


def _placeholder_id(folder: Path, sense: Sense) -> int:
    """Return the id that a host's config gives the placeholder of one sense."""
    host = Checkpoint(str(folder), folder)
    if not sense.placeholder:
        raise ConfigError(
            f"{host.ref}: transformers has no {host.architecture}, so it cannot be part of one"
            " routed model; take it out with omnireg mmer extract, or merge a converted copy"
        )
    configs = [host.config, host.config.get("thinker_config") or {}]
    for config in configs:
        for key in sense.placeholder:
            if isinstance(config.get(key), int):
                return int(config[key])
    raise CheckpointError(
        f"{host.ref}: its config.json has no {' or '.join(sense.placeholder)}; download it again"
    )


def _tokenizer(base: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    folder = base.folder
    # without its files transformers makes an empty one up
    if base.vocabulary is None:
        raise CheckpointError(f"{folder} has no tokenizer.json; download or copy it again")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as exc:  # what the tokenizers library raises has no class of its own
        said = " ".join(str(exc).split())
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {said}") from exc
