"""What is used of a card that others wrote: its parents and its numbers, as validated values.

A card is written by hand and has no schema that anybody keeps to. What cannot be used of it is left
out, with one line that says so.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from omnireg.boundary.text import shown
from omnireg.hub.card import split
from omnireg.hub.client import is_name
from omnireg.hub.files import CARD
from omnireg.hub.repository import LONGEST_CARD, Damaged, Repository
from omnireg.registry.declare.manifest import ScoreItem

#: of a card, so many parents and so many numbers are taken
PARENTS, SCORES = 50, 1000
_USED = ("base_model", "base_model_relation", "model-index")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _worded(value: Any) -> Any:
    return str(value) if isinstance(value, bool | int | float) else value or None


_Word = Annotated[str | None, BeforeValidator(_worded)]


class _Dataset(BaseModel):
    name: _Word = None
    type: _Word = None
    config: _Word = None
    split: _Word = None


class _Metric(BaseModel):
    name: _Word = None
    type: _Word = None
    value: Any = None


class _Result(BaseModel):
    dataset: _Dataset | None = None
    metrics: list[_Metric] | None = None


class _Model(BaseModel):
    results: list[_Result] | None = None


class Card(BaseModel):
    """A card's metadata, as far as it is used.

    Attributes:
        parents: the repositories that it names as ``base_model``, without their revisions.
        relation: what it says that it is to them.
        models: its ``model-index``.
    """

    parents: Annotated[list[str], BeforeValidator(_listed)] = Field(default=[], alias="base_model")
    relation: str | None = Field(default=None, alias="base_model_relation")
    models: Annotated[list[_Model], BeforeValidator(_listed)] = Field(
        default=[], alias="model-index"
    )


def read_card(repo: Repository) -> tuple[Card, list[str]]:
    """Return the card of a repository, and a line for everything of it that is left out.

    Raises:
        PublishError: the Hub does not hand it out.
    """
    if CARD not in repo.files:
        return Card(), []
    where = repo.where(CARD)
    try:
        text = repo.text(CARD, LONGEST_CARD)
        data, _ = split(text, where, Damaged)
    except Damaged as exc:
        return Card(), [f"{shown(str(exc), 300)}; nothing of it is recorded"]
    return _read(data, where)


def _read(data: dict[str, Any], where: str) -> tuple[Card, list[str]]:
    data = {key: data[key] for key in _USED if key in data}
    try:
        return Card.model_validate(data), []
    except (ValidationError, RecursionError) as exc:
        wrong = (
            {str(each["loc"][0]): each["msg"] for each in exc.errors(include_url=False)}
            if isinstance(exc, ValidationError)
            else dict.fromkeys(data, "nested too deeply")
        )
    kept = {key: value for key, value in data.items() if key not in wrong}
    lines = [f"{where}: {key} is not what it should be ({wrong[key]}); it is left out"
             for key in wrong]  # fmt: skip
    return Card.model_validate(kept), [shown(line, 300) for line in lines]


def parents(card: Card, repo: Repository) -> tuple[list[str], list[str]]:
    """Return the repositories that a card names as parents, each once, and what is left out."""
    found = list(dict.fromkeys(each.partition("@")[0] for each in card.parents))
    named = [each for each in found if is_name(each)]
    lines = []
    if len(named) < len(found):
        odd = next(each for each in found if each not in named)
        lines.append(f"its parent {shown(odd, 60)!r} is no repository of the Hub and is left out")
    if len(named) > PARENTS:
        lines.append(f"it names {len(named)} parents, and the first {PARENTS} are taken")
    where = repo.where(CARD)
    return named[:PARENTS], [f"{where}: {line}" for line in lines]


def scores(card: Card, repo: Repository) -> tuple[list[ScoreItem], list[str]]:
    """Return the numbers of a card's ``model-index``, and what is left out.

    What is no finite number is nothing that was measured. Of two values under the same conditions
    the first counts.
    """
    found: dict[tuple[Any, ...], ScoreItem] = {}
    odd = 0
    for said in _numbers(card):
        try:
            item = ScoreItem(
                checkpoint=repo.name, source=f"{repo.api.endpoint}/{repo.name}", **said
            )
        except (ValidationError, ValueError):
            odd += 1
            continue
        found.setdefault((item.benchmark, item.metric, item.filter, item.split), item)
    lines = [f"{odd} results with odd names are left out"] if odd else []
    if len(found) > SCORES:
        lines.append(f"it has {len(found)} results, and the first {SCORES} are taken")
    where = repo.where(CARD)
    return [*found.values()][:SCORES], [f"{where}: {line}" for line in lines]


def _numbers(card: Card) -> Iterator[dict[str, Any]]:
    for model in card.models:
        for result in model.results or ():
            dataset = result.dataset or _Dataset()
            for metric in result.metrics or ():
                if _is_number(metric.value):
                    yield {
                        "benchmark": dataset.name or dataset.type or "unnamed",
                        "value": float(metric.value),
                        "metric": metric.name or metric.type or "score",
                        "filter": dataset.config,
                        "split": dataset.split,
                    }


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
