"""A recipe: mergekit's YAML, one more key of ours, and nothing unknown.

Every mergekit configuration is a recipe. What omnireg adds lives under ``omnireg:``. Unknown keys
anywhere else are errors with a suggestion instead of silence. Method parameters are checked later,
against the method's own declaration.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from omnireg.boundary.documents import parse_yaml
from omnireg.boundary.files import read_text
from omnireg.boundary.names import fault
from omnireg.boundary.text import one_line, quoted
from omnireg.errors import ConfigError, did_you_mean

#: of many mistakes, so many are told
_TOLD = 5
_LARGEST = 1.7976931348623157e308


def _plain(value: Any) -> Any:
    """Refuse what a recipe's digest cannot be computed of: NaN, dates, bytes, sets."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{quoted(key)} is no word; put the key into quotes")
            _plain(each)
    elif isinstance(value, list):
        for each in value:
            _plain(each)
    elif isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{quoted(value)} is no finite number")
    elif value is not None and not isinstance(value, int | float | str):
        raise ValueError(f"{quoted(value)} is no number and no text; put it into quotes")
    return value


Plain = Annotated[Any, AfterValidator(_plain)]
Parameters = Annotated[dict[str, Any], AfterValidator(_plain)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputModel(_Strict):
    """One entry under ``models:``."""

    model: str
    parameters: Parameters | None = None


class SliceSource(_Strict):
    """One source of a layer slice."""

    model: str
    layer_range: tuple[int, int]
    parameters: Parameters | None = None


class OutputSlice(_Strict):
    """One slice of the output's layers."""

    sources: list[SliceSource]
    base_model: str | None = None
    residual_weight: float | None = Field(None, allow_inf_nan=False)
    parameters: Parameters | None = None


class OutputModule(_Strict):
    """One module of a multi-module architecture."""

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Parameters | None = None


class TokenizerSurgery(_Strict):
    """mergekit's ``tokenizer:`` block."""

    source: Plain = "union"
    tokens: Parameters | None = None
    pad_to_multiple_of: int | None = None


class Output(StrEnum):
    """What a merge of hosts of different classes writes."""

    BACKBONE = "backbone"
    HOST = "host"
    PACKAGE = "package"


def check_modality(name: str) -> None:
    """Refuse a modality that cannot be the name of a folder in a package.

    Raises:
        ValueError: says what is wrong with it.
    """
    if said := fault(name, alone=True):
        raise ValueError(f"the modality {said}; choose another name for it")


class Block(_Strict):
    """The ``omnireg:`` block."""

    name: str | None = Field(default=None, description="name of the result in the registry")
    output: Output | None = Field(default=None, description="backbone, host or package")
    host: str | None = Field(
        default=None, description="whose encoders and projectors the result carries"
    )
    modalities: dict[str, str] = Field(default_factory=dict, description="modality → model")
    base: Literal["embed", "reference"] = Field(default="embed", description="base of a package")
    notes: str | None = Field(default=None, description="free text, not part of the digest")

    @field_validator("modalities")
    @classmethod
    def _named(cls, modalities: dict[str, str]) -> dict[str, str]:
        for name in modalities:
            check_modality(name)
        return modalities


class Recipe(_Strict):
    """A merge, declared: frozen, validated, with a canonical digest."""

    merge_method: str
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, OutputModule] | None = None
    base_model: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerSurgery | None = None
    chat_template: str | None = None
    parameters: Parameters | None = None
    omnireg: Block = Field(default_factory=lambda: Block())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [k for k in ("models", "slices", "modules") if getattr(self, k) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of models, slices or modules (got {what})")
        listed = [entry.model for entry in self.models or ()]
        twice = [ref for ref, times in Counter(listed).items() if times > 1]
        if twice:
            raise ValueError(f"{quoted(twice[0])} is listed twice under models; list it once")
        if self.models is not None and not listed:
            raise ValueError("models is empty; list at least one model")
        return self

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, without ``omnireg.name`` and ``omnireg.notes``."""
        data = self.model_dump(
            mode="json", exclude_none=True, exclude={"omnireg": {"name", "notes"}}
        )
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return sha256(text.encode()).hexdigest()

    @property
    def references(self) -> list[str]:
        """Every checkpoint the recipe names, base first, each once."""
        found = dict.fromkeys([self.base_model] if self.base_model else [])
        found.update(dict.fromkeys(entry.model for entry in self.models or ()))
        modules = self.modules or {}
        for module in modules.values():
            found.update(dict.fromkeys(entry.model for entry in module.models or ()))
        nested = (s for module in modules.values() for s in module.slices or ())
        for piece in (*(self.slices or ()), *nested):
            found.update(dict.fromkeys(source.model for source in piece.sources))
        return list(found)

    @property
    def listed(self) -> list[str]:
        """The references under ``models:``."""
        return [entry.model for entry in self.models or ()]

    @property
    def merged_models(self) -> list[InputModel]:
        """The entries under ``models:`` that are not the base."""
        return [entry for entry in self.models or () if entry.model != self.base_model]

    def parameter_blocks(self) -> Iterator[tuple[str, Parameters]]:
        """Yield every ``parameters:`` block with where it stands."""
        if self.parameters:
            yield "parameters", self.parameters
        yield from _walk("", self.model_dump(exclude_none=True, exclude={"parameters"}))

    def without_block(self) -> dict[str, Any]:
        """Return the plain mergekit configuration."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"omnireg"})


def _walk(where: str, node: Any) -> Iterator[tuple[str, Parameters]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            path = f"{where}.{key}" if where else str(key)
            if key == "parameters" and isinstance(value, dict):
                yield path, value
            else:
                yield from _walk(path, value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _walk(f"{where}[{index}]", value)


def as_recipe(recipe: Recipe | Path | str) -> tuple[Recipe, str]:
    """Return a recipe, given itself, the path of one or its YAML text, with the text.

    A string of one line without a key, such as ``"omni.yml"``, is a path.

    Raises:
        ConfigError: the file cannot be read, or it is not a recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe, recipe.model_dump_json(exclude_none=True)
    if isinstance(recipe, str) and not _is_yaml(recipe):
        recipe = Path(recipe)
    if isinstance(recipe, Path):
        return read_recipe(recipe)
    return parse_recipe(recipe), recipe


def _is_yaml(text: str) -> bool:
    """Whether a string can be a recipe's text, which is a mapping; no path looks like one."""
    return any(mark in text for mark in ("\n", ": ", "{")) or not text.strip()


def read_recipe(source: Path) -> tuple[Recipe, str]:
    """Return the recipe in a YAML file and its text, verbatim.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a recipe.
    """
    text = read_text(source, error=ConfigError)
    return parse_recipe(text, str(source)), text


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse YAML text into a recipe.

    Raises:
        ConfigError: not YAML, or not a recipe; says which key and what to write instead.
    """
    data = parse_yaml(text, where, error=ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is not a recipe: expected keys such as merge_method and models")
    return validated(data, where)


def validated(data: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe that keys and values are.

    Raises:
        ConfigError: it is none; says which key and what to write instead.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        said = [_explain(error) for error in errors[:_TOLD]]
        more = [f"and {len(errors) - _TOLD} more"] if len(errors) > _TOLD else []
        raise ConfigError(f"{where}: {'; '.join(said + more)}") from exc


_KNOWN_KEYS = sorted(
    {
        name
        for model in (
            Recipe, InputModel, SliceSource, OutputSlice, OutputModule, TokenizerSurgery, Block,
        )
        for name in model.model_fields
    }
)  # fmt: skip


def _keys_beside(error: Any) -> list[str]:
    """Return the keys that are known where an unknown one stands."""
    if len(error["loc"]) == 1:
        return list(Recipe.model_fields)
    if error["loc"][0] == "models":
        return list(InputModel.model_fields)
    return list(Block.model_fields) if error["loc"][0] == "omnireg" else _KNOWN_KEYS


def _explain(error: Any) -> str:
    path = one_line(".".join(str(part) for part in error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}{did_you_mean(str(error['loc'][-1]), _keys_beside(error))}"
    if error["type"] == "missing":
        return f"key {path!r} is missing"
    if error["type"] in ("model_type", "dict_type"):
        if error["loc"][0] == "models" and isinstance(error["input"], str):
            name = one_line(error["input"])
            return f"{path}: {name!r} alone is no entry: write - model: {name}"
        return f"{path}: {quoted(error['input'])} is no mapping: write KEY: VALUE below it"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
