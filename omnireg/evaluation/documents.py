"""Results as lm-evaluation-harness and lmms-eval write them, in a file or in memory.

Both write the same shape: ``results`` by task with keys ``metric,filter`` and
``metric_stderr,filter``, and beside it versions, shots, sample counts, configs and seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omnireg.boundary.documents import parse_json
from omnireg.boundary.files import read_bytes
from omnireg.errors import EvaluationError
from omnireg.evaluation.abilities import ability_of
from omnireg.hookspecs import Result

_LARGEST = 1.7976931348623157e308
_NO_METRICS = ("alias", "name", "sample_len", "sample_count", "samples")
#: what to give instead of another file
_WHICH = "give the results_*.json or *_results.json of a run, not its samples"
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")


@dataclass(frozen=True)
class Document:
    """The results of one run of an evaluation program.

    Attributes:
        evaluator: the program: ``lm-eval`` or ``lmms-eval``.
        version: of it, where it says so.
        model: what it says it measured.
        results: one for each task, metric and filter.
    """

    evaluator: str
    version: str | None
    model: str
    results: tuple[Result, ...]


def read_document(file: Path) -> Document:
    """Read a results file.

    Raises:
        EvaluationError: it cannot be read, or is no such file.
    """
    raw = read_bytes(file, error=EvaluationError)
    data = parse_json(raw, file, error=EvaluationError, loose=True, remedy=_WHICH)
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise EvaluationError(
            f"{file} holds no results of lm-eval or lmms-eval: it has no `results` by task; give"
            " the results_*.json or *_results.json of a run"
        )
    said = {"file": file.name, "file_sha256": sha256(raw).hexdigest()}
    return parse(data, said)


def parse(data: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> Document:
    """Return the results of a run, as :func:`read_document` does; ``said`` goes into the details.

    Raises:
        EvaluationError: there are none.
    """
    program = "lmms-eval" if "lmms_eval_version" in data else "lm-eval"
    version = data.get(f"{program.replace('-', '_')}_version")
    results = tuple(_results(data, said or {}))
    if not results:
        raise EvaluationError(f"these results of {program} hold no numbers: was the run cut short?")
    config = _dict(data, "config")
    model = str(data.get("model_name") or config.get("model_args") or config.get("model") or "")
    known = isinstance(version, str) and "unknown" not in version
    return Document(program, version if known else None, model, results)


def _results(data: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[Result]:
    for task, measured in {**data["results"], **_dict(data, "groups")}.items():
        if not isinstance(measured, dict):
            continue
        shared = _shared(data, str(task), said)
        directions = _dict(_dict(data, "higher_is_better"), task)
        usual: bool | None = None
        for key, value in measured.items():
            metric, _, filtered = str(key).partition(",")
            if metric in _NO_METRICS or "_stderr" in metric or not _is_number(value):
                continue
            higher = directions.get(metric) is not False
            usual = higher if usual is None else usual
            stderr: Any = measured.get(f"{metric}_stderr,{filtered}")
            yield Result(
                # a benchmark has one direction: what counts the other way is one of its own
                benchmark=str(task) if higher is usual else f"{task} ({metric})",
                metric=metric,
                value=float(value),
                higher_is_better=higher,
                stderr=float(stderr) if _is_number(stderr) else None,
                filter=filtered if filtered not in ("", "none") else None,
                **shared,
            )


def _shared(data: Mapping[str, Any], task: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all metrics of a task share."""
    config, own = _dict(data, "config"), _dict(_dict(data, "configs"), task)
    count, partial = _count(data, task)
    setup = {
        "task_version": _version(data, task, own),
        "task_hash": _dict(data, "task_hashes").get(task),
        "chat_template": data.get("chat_template_sha"),
        "system_instruction": data.get("system_instruction_sha"),
        "fewshot_as_multiturn": data.get("chat_template_sha")
        and bool(data.get("fewshot_as_multiturn")),
        "seeds": [config[name] for name in _SEEDS if config.get(name) is not None] or None,
        "limit": config.get("limit"),
        "gen_kwargs": config.get("gen_kwargs") or None,
    }
    details = {
        **said,
        "model": data.get("model_name"),
        "dtype": _word(config.get("model_dtype")),
        "device": config.get("device"),
        "batch_size": config.get("batch_size"),
        "git_hash": data.get("git_hash"),
    }
    shots = _dict(data, "n-shot").get(task)
    split = own.get("test_split") or own.get("validation_split")
    return {
        "n": count,
        "n_shot": shots if isinstance(shots, int) else None,
        "split": str(split) if split else None,
        "ability": ability_of(task),
        "partial": partial,
        "setup": {name: value for name, value in setup.items() if value is not None},
        "details": {name: value for name, value in details.items() if value is not None},
    }


def _word(value: Any) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")


def _version(data: Mapping[str, Any], task: str, own: Mapping[str, Any]) -> str | None:
    found = _dict(data, "versions").get(task)
    if found in (None, "Yaml", "N/A"):
        said = own.get("metadata")
        listed = said if isinstance(said, list) else [said]
        found = next((e["version"] for e in listed if isinstance(e, dict) and "version" in e), None)
    return None if found is None else str(found)


def _count(data: Mapping[str, Any], task: str) -> tuple[int | None, bool]:
    """Return how many items were used, and whether some were left out; a group's are its tasks'."""
    limited = _dict(data, "config").get("limit") is not None
    counts = [_dict(_dict(data, "n-samples"), name) for name in _tasks_of(data, task)]
    if not counts or not all(_is_number(c.get("effective")) for c in counts):
        return None, limited
    left_out = any(c["effective"] != c.get("original", c["effective"]) for c in counts)
    return sum(int(c["effective"]) for c in counts), limited or left_out


def _tasks_of(data: Mapping[str, Any], task: str) -> Sequence[str]:
    """Return the tasks of a group, each once, also of groups that hold each other."""
    groups = _dict(data, "group_subtasks")
    pending, seen, found = [task], {task}, []
    while pending:
        name = pending.pop()
        said = groups.get(name)
        members = [m for m in said if isinstance(m, str)] if isinstance(said, list) else []
        new = [m for m in dict.fromkeys(members) if m not in seen]
        seen.update(new)
        pending += new
        if not members:
            found.append(name)
    return found


def _dict(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST <= value <= _LARGEST  # which NaN and Infinity are not
