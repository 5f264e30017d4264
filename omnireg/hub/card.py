"""The model card: metadata that the Hub reads, and a section that is ours.

Between the markers everything is written anew at each publish; text around them, and metadata that
we do not set, stays as people left it.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from omnireg.boundary.documents import parse_yaml
from omnireg.errors import OmniregError, PublishError
from omnireg.hub.lineage import Dossier, is_merge
from omnireg.registry import Drawing, Kind, Score, render
from omnireg.version import __version__

BEGIN = "<!-- omnireg: written at every publish, up to the end marker -->"
END = "<!-- omnireg: end -->"
#: longer metadata is nobody's card
_LONGEST = 500_000
_PIPELINES = {"image": "image-text-to-text", "video": "video-text-to-text",
              "audio": "audio-text-to-text"}  # fmt: skip
#: licences that allow no derived work
_NO_DERIVATIVES = ("-nd-", "-nd")


def split(
    text: str, where: str = "the card", error: type[OmniregError] = PublishError
) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its text.

    Raises:
        OmniregError: of the class ``error``; the metadata is too long, or no YAML to be trusted.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}, text
    head, found, body = text[3:].partition("\n---")
    if not found:
        return {}, text
    if len(head) > _LONGEST:
        raise error(f"{where}: its metadata is longer than {_LONGEST:,} characters")
    data = parse_yaml(head, where, error=error)
    return (data if isinstance(data, dict) else {}), body.partition("\n")[2]


def compose(old: str, metadata: Mapping[str, Any], section: str, title: str) -> str:
    """Return a card: an old one's text and metadata with ours put in, or a new one.

    Raises:
        PublishError: the old one cannot be read.
    """
    said, body = split(old)
    known = said.get("tags") or []
    tags = [*map(str, known if isinstance(known, list) else [known]), *metadata.get("tags", [])]
    data = {**said, **metadata, "tags": list(dict.fromkeys(tags))}
    ours = f"{BEGIN}\n{section.strip()}\n{END}"
    before, found, rest = body.partition(BEGIN)
    if found:
        body = before + ours + rest.partition(END)[2]
    else:
        body = f"{body.rstrip() or f'# {title}'}\n\n{ours}\n"
    head = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{head}---\n{body}"


def metadata(found: Dossier, licence: str | None) -> dict[str, Any]:
    """Return what the Hub is told: parents, relation, tags, licence, and our own block."""
    record = found.record
    data: dict[str, Any] = {"library_name": "transformers"}
    if found.base_models:
        data["base_model"] = found.base_models
        data["base_model_relation"] = "merge" if is_merge(record) else "finetune"
    data["tags"] = [*(["mergekit", "merge"] if is_merge(record) else []), "omnireg"]
    if licence:
        data["license"] = licence
    pipelines = [_PIPELINES[m] for m in record.modalities if m in _PIPELINES]
    data["pipeline_tag"] = (
        "text-generation" if not pipelines else pipelines[0] if len(pipelines) == 1
        else "any-to-any"
    )  # fmt: skip
    data["omnireg"] = {
        "version": __version__,
        "kind": str(record.kind),
        "fingerprint": record.fingerprint,
        **({"strategy": record.strategy} if record.strategy else {}),
        **({"recipe_digest": found.run.recipe_digest} if found.run else {}),
        **({"modalities": list(record.modalities)} if record.modalities else {}),
    }
    return data


def derive_licence(known: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return the licence that follows from the parents', and what is doubtful about it."""
    found = sorted(set(known.values()))
    warnings = [
        f"{parent} is under {licence}, which forbids derived works"
        for parent, licence in known.items()
        if any(mark in f"{licence}-" for mark in _NO_DERIVATIVES)
    ]
    if len(found) > 1:
        listed = ", ".join(f"{parent}: {licence}" for parent, licence in sorted(known.items()))
        warnings.append(f"the parents' licences differ ({listed}); say which with --license")
        return "other", warnings
    if not found:
        warnings.append("no parent's licence is known; say yours with --license")
        return None, warnings
    return found[0], warnings


def section(found: Dossier, repo: str) -> str:
    """Return our section: what it is made of, how good it is, how to load and reproduce it."""
    parts = [
        _summary(found),
        "## Lineage",
        f"```mermaid\n{render(found.family, Drawing.MERMAID)}\n```",
    ]
    parts.append(_parents(found))
    if found.recipe:
        parts += ["## Recipe", f"```yaml\n{found.recipe.rstrip()}\n```"]
    if found.scores[found.record.name]:
        parts += ["## Scores", _scores(found)]
    parts += ["## Load it", _loading(found, repo), "## Reproduce it", _reproducing(found, repo)]
    return "\n\n".join(part for part in parts if part)


def _summary(found: Dossier) -> str:
    record = found.record
    what = {
        Kind.MERGED: "A merge", Kind.PACKAGE: "A decoupled package", Kind.BASE: "A base model",
        Kind.FINETUNED: "A fine-tuned model",
    }[record.kind]  # fmt: skip
    how = f" by `{record.strategy}`" if record.strategy else ""
    senses = f" It takes in text, {', '.join(record.modalities)}." if record.modalities else ""
    return f"{what}{how}, fingerprint `{(record.fingerprint or 'unknown')[:16]}`.{senses}"


def _parents(found: Dossier) -> str:
    if not found.record.parents:
        return ""
    lines = [
        "| parent | role | weight | fingerprint | revision |",
        "| --- | --- | --- | --- | --- |",
    ]
    for parent in found.record.parents:
        ref, _, revision = found.hub_ids.get(parent.name, "").partition("@")
        named = f"[{ref}](https://huggingface.co/{ref})" if ref else f"`{parent.name}`"
        digest = (found.ancestors[parent.name].fingerprint or "")[:16]
        weight = "" if parent.weight is None else f"{parent.weight:g}"
        lines.append(f"| {named} | {parent.role} | {weight} | `{digest}` | {revision[:12]} |")
    return "\n".join(lines)


def _scores(found: Dossier) -> str:
    """Return a table: each score beside those of the direct parents, with retention."""
    record = found.record
    names = list(dict.fromkeys(p.name for p in record.parents if found.scores.get(p.name)))
    theirs = {name: {_under(s): s for s in found.scores[name]} for name in names}
    shared = [n for n in names if any(_under(s) in theirs[n] for s in found.scores[record.name])]
    head = ["benchmark", "metric", "this model", *(_escaped(name) for name in shared)]
    rows = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for score in found.scores[record.name]:
        cells = [_escaped(score.benchmark), _escaped(score.metric), _value(score)]
        for name in shared:
            other = theirs[name].get(_under(score))
            cells.append("" if other is None else _beside(score, other))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _under(score: Score) -> tuple[Any, ...]:
    return (score.benchmark, score.metric, score.filter, score.split, score.n_shot)


def _value(score: Score) -> str:
    error = f" ± {score.stderr:.3g}" if score.stderr is not None else ""
    return f"{score.value:.4g}{error}{' (partial)' if score.partial else ''}"


def _beside(mine: Score, other: Score) -> str:
    better = mine.value / other.value if mine.higher_is_better and other.value else None
    kept = f" ({better:.0%} kept)" if better is not None else ""
    return f"{other.value:.4g}{kept}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _loading(found: Dossier, repo: str) -> str:
    if found.record.kind is Kind.PACKAGE:
        return (
            f"```bash\nhf download {repo} --local-dir omni\nomnireg mmer generate omni --prompt"
            ' "…"\n```\n\n```python\nimport omnireg\n\nmodel = omnireg.load("omni")\n```'
        )
    cls = "AutoModelForImageTextToText" if found.record.modalities else "AutoModelForCausalLM"
    if list(found.record.modalities) == ["audio"]:
        cls = "AutoModel"
    return (
        f'```python\nfrom transformers import {cls}\n\nmodel = {cls}.from_pretrained("{repo}")\n```'
    )


def _reproducing(found: Dossier, repo: str) -> str:
    lines = [f"Made with omnireg {__version__}."]
    if found.run:
        used = sorted(found.run.versions.items())
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in used) + ".")
        lines.append(
            f"```bash\nomnireg pull {repo}\nomnireg verify {found.record.name} --rerun\n```\n\n"
            "That merges again from the same inputs, wherever they lie: record yours with"
            " `omnireg add`. They are known by their fingerprints."
        )
    return "\n\n".join(lines)


def licences(found: Dossier, cards: Mapping[str, str | None]) -> dict[str, str]:
    """Return the known licences of the direct parents: recorded, or on their cards."""
    known = {}
    for parent in found.record.parents:
        details = found.ancestors[parent.name].details or {}
        said = details.get("license") or cards.get(parent.name)
        if isinstance(said, str) and said:
            known[parent.name] = said
    return known
