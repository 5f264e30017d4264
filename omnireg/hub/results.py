"""Scores as the Hub reads them: files for registered benchmarks, ``model-index`` for the rest."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry
from huggingface_hub import eval_result_entries_to_yaml as to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from omnireg.errors import PublishError
from omnireg.registry import Score

_DIGEST = re.compile(r"[0-9a-f]{40,64}")
#: benchmarks that have a leaderboard of their own on the Hub → data set and task
REGISTERED = {
    "MMLU-Pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    "GPQA": ("Idavidrein/gpqa", "diamond"),
    "HLE": ("cais/hle", "hle"),
    "GSM8K": ("openai/gsm8k", "gsm8k"),
}


def result_files(scores: Sequence[Score]) -> dict[str, str]:
    """Return ``.eval_results/*.yaml`` of registered benchmarks, by path; no partial scores."""
    import yaml

    found: dict[str, list[EvalResultEntry]] = {}
    for score in scores:
        if score.benchmark in REGISTERED and not score.partial:
            dataset, task = REGISTERED[score.benchmark]
            entry = EvalResultEntry(
                dataset_id=dataset, task_id=task, value=score.value,
                date=score.created_at.date().isoformat(), notes=_conditions(score) or None,
                **_source(score),
            )  # fmt: skip
            found.setdefault(score.benchmark, []).append(entry)
    return {
        f".eval_results/{name.lower().replace(' ', '-')}.yaml": yaml.safe_dump(
            to_yaml(entries), sort_keys=False, allow_unicode=True
        )
        for name, entries in found.items()
    }


def _source(score: Score) -> dict[str, str]:
    source = score.source or ""
    return {"source_url": source} if source.startswith(("http://", "https://")) else {}


def _conditions(score: Score) -> str:
    """Return what a score depends on, beside benchmark and metric."""
    said = {
        "n-shot": score.n_shot, "filter": score.filter, "split": score.split,
        "evaluator": score.evaluator, "version": score.evaluator_version, "source": score.source,
    }  # fmt: skip
    said |= score.setup or {}
    return ", ".join(f"{name} {_short(value)}" for name, value in said.items() if value is not None)


def _short(value: Any) -> str:
    """Return a value as people read it; of a digest the first digits are enough."""
    text = str(value)
    return text[:12] if _DIGEST.fullmatch(text) else text


def model_index(name: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return ``model-index`` of the scores that have no file of their own, none of them lost.

    The Hub groups results by task, data set, configuration, split and revision, and of two that
    agree in these and in their metric keeps one; so conditions go into the configuration.

    Raises:
        PublishError: a value would be lost all the same.
    """
    rest = [s for s in scores if s.benchmark not in REGISTERED or s.partial]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_slug(score.benchmark),
            dataset_name=score.benchmark,
            dataset_config=_conditions(score) or None,
            dataset_split=score.split,
            metric_type=_slug(score.metric),
            metric_name=score.metric + (" (partial)" if score.partial else ""),
            metric_value=score.value,
        )
        for score in rest
    ]
    if not results:
        return []
    made: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    _, back = model_index_to_eval_results(made)
    before = sorted((r.dataset_name, r.metric_name or "", float(r.metric_value)) for r in results)
    after = sorted((r.dataset_name, r.metric_name or "", float(r.metric_value)) for r in back)
    if before != after:
        raise PublishError(
            "the card's format would lose scores that differ only in conditions it has no place"
            " for; give them a filter or a split: omnireg scores add"
        )
    return made


def _slug(name: str) -> str:
    return name.lower().replace(" ", "_")
