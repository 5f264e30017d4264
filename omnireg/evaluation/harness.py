"""lm-evaluation-harness in this process: the only door to it.

Text tasks are put to text models, to hosts (whose language model then runs without media) and to
packages. Tasks with pictures or sounds are put to hosts through the harness's own adapters.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from omnireg.checkpoints.loading import quiet
from omnireg.errors import EvaluationError, did_you_mean
from omnireg.evaluation.documents import parse
from omnireg.evaluation.model import Subject
from omnireg.evaluation.opening import open_subject
from omnireg.hookspecs import Conduct, Result
from omnireg.package import is_package

_MISSING = "lm-evaluation-harness is not installed: pip install 'omnireg[eval]'"
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class Harness:
    """Runs tasks of lm-evaluation-harness."""

    name = "lm-eval"

    @property
    def version(self) -> str:
        """Return the harness's version."""
        try:
            return version("lm_eval")
        except PackageNotFoundError as exc:
            raise EvaluationError(_MISSING) from exc

    def evaluate(self, folder: Path, tasks: Sequence[str], conduct: Conduct) -> Iterator[Result]:
        """Measure the checkpoint in a folder.

        Raises:
            EvaluationError: the harness is missing, a task is not known or cannot be loaded, or
                the checkpoint cannot take it in.
        """
        manager = _task_manager(tasks, conduct)
        media = _media(manager, tasks)
        subject = open_subject(folder, device=conduct.device, dtype=conduct.dtype)
        for kind in dict.fromkeys(media.values()):
            chosen = [task for task in tasks if media[task] == kind]
            data = _run(_adapter(subject, kind, conduct), chosen, manager, conduct)
            yield from parse(data).results


EVALUATOR = Harness()


def _task_manager(tasks: Sequence[str], conduct: Conduct) -> Any:
    """Return the harness's index of tasks: of the user's alone, if they are all among them."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as exc:
        raise EvaluationError(_MISSING) from exc
    place = conduct.include_path
    if place is not None and not place.is_dir():
        raise EvaluationError(f"--include-path: there is no folder {place}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        if place:
            own = TaskManager(include_path=str(place), include_defaults=False)
            if set(tasks) <= set(own.all_tasks):
                return own
        manager = TaskManager(include_path=str(place) if place else None)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as exc:
        raise EvaluationError(f"{place}: its tasks cannot be read: {_said(exc)}") from exc
    check_tasks(tasks, manager.all_tasks)
    return manager


def check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Refuse tasks that nobody wrote.

    Raises:
        EvaluationError: names the closest ones.
    """
    for task in tasks:
        if task not in known:
            raise EvaluationError(
                f"no task {task!r}{did_you_mean(task, known)}: the harness knows"
                f" {len(known)} tasks (lm-eval ls tasks); your own: --include-path DIR; a file of"
                " items ends in .jsonl"
            )


def _media(manager: Any, tasks: Sequence[str]) -> dict[str, str]:
    """Return what each task has beside text: ``image``, ``audio`` or nothing."""
    found: dict[str, str] = {}
    for task in tasks:
        try:
            with quiet(), _bars(hidden=True):
                loaded = manager.load([task])["tasks"]
        except Exception as exc:  # a task's data set, code and files fail in their own ways
            raise EvaluationError(f"task {task} cannot be loaded: {_said(exc)}") from exc
        kinds = {
            "image" if task_.config.doc_to_image else "audio" if task_.config.doc_to_audio else ""
            for task_ in loaded.values()
        }
        if len(kinds) > 1:
            raise EvaluationError(f"task {task} mixes text and media; run its parts by themselves")
        found[task] = kinds.pop()
    return found


def _adapter(subject: Subject, kind: str, conduct: Conduct) -> Any:
    """Return the harness's model around ours."""
    from lm_eval.models.hf_vlms import HFMultimodalLM
    from lm_eval.models.huggingface import HFLM

    how: dict[str, Any] = {
        "pretrained": subject.model,
        "backend": "causal",
        "batch_size": conduct.batch_size,
    }
    if not kind:
        return HFLM(tokenizer=subject.tokenizer, **how)
    if kind not in subject.placeholders or is_package(subject.folder):
        raise EvaluationError(
            f"{subject.folder} is asked about {kind} by a task of the harness, whose adapters take"
            " hosts of that kind; a package takes a file of items (.jsonl)"
        )
    with quiet():
        if kind == "image":
            return HFMultimodalLM(**how)
        return _audio_adapter()(**how)


def _audio_adapter() -> Any:
    try:
        from lm_eval.models.hf_audiolm import HFAUDIOLMQWEN
    except (ImportError, ValueError) as exc:  # 0.4.13 registers it twice and cannot import it
        raise EvaluationError(
            f"the audio adapter of lm-eval {EVALUATOR.version} cannot be loaded: {_said(exc)}; put"
            " the questions into a file of items (.jsonl)"
        ) from exc
    return HFAUDIOLMQWEN


def _run(model: Any, tasks: Sequence[str], manager: Any, conduct: Conduct) -> Mapping[str, Any]:
    from lm_eval import evaluator
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker()
    # it would ask git about whatever folder this is
    evaluator.get_git_commit_hash = lambda: None
    seeds = {} if conduct.seed is None else dict.fromkeys(_SEEDS, conduct.seed)
    try:
        with quiet(), _bars(hidden=_nobody_looks()):
            data = evaluator.simple_evaluate(
                model=model,
                tasks=list(tasks),
                num_fewshot=conduct.n_shot,
                limit=conduct.limit,
                batch_size=conduct.batch_size,
                device=conduct.device,
                apply_chat_template=bool(conduct.chat_template),
                task_manager=manager,
                evaluation_tracker=tracker,
                **seeds,
                gen_kwargs=(
                    {"max_gen_toks": conduct.max_new_tokens} if conduct.max_new_tokens else None
                ),
            )
    except (NotImplementedError, ValueError, AssertionError, ImportError, OSError) as exc:
        raise EvaluationError(f"{', '.join(tasks)}: {_said(exc)}") from exc
    except RuntimeError as exc:
        if "out of memory" in str(exc):
            raise EvaluationError(
                f"{', '.join(tasks)}: out of memory; try a smaller --batch-size"
            ) from exc
        raise
    assert data is not None
    said = tracker.general_config_tracker
    return {
        **data,
        "task_hashes": {task: _hash(samples) for task, samples in data.get("samples", {}).items()},
        "chat_template_sha": said.chat_template_sha,
        "lm_eval_version": EVALUATOR.version,
    }


def _hash(samples: Sequence[Mapping[str, str]]) -> str:
    """Return the harness's own hash of a task: of its documents, prompts and targets."""
    from lm_eval.utils import hash_string

    parts = (s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    return str(hash_string("".join(parts)))


@contextlib.contextmanager
def _bars(*, hidden: bool) -> Iterator[None]:
    """Hide the harness's progress bars, which go to stderr, from those who asked for quiet."""
    with contextlib.ExitStack() as stack:
        if hidden:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _nobody_looks() -> bool:
    return not sys.stderr.isatty() or logging.getLogger("omnireg").level >= logging.ERROR


def _said(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else repr(exc)
