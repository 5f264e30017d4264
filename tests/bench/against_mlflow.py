"""Recording and finding beside MLflow's model registry, for what both can do.

    python tests/bench/against_mlflow.py FOLDER PYTHON_WITH_MLFLOW [--models 500]

Both write to a SQLite file of their own: one model with one version and two tags at a time, then
find the models that have a tag. Each runs in a process of its own; imports are left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

OURS = """
import json, sys, time
from omnireg import Registry
path, models = sys.argv[1], int(sys.argv[2])
book = Registry(path)
book.upgrade()
began = time.perf_counter()
for n in range(models):
    book.add_checkpoint(f"m{n}", kind="base", modalities=["image" if n % 5 else "audio"],
                        strategy="average", source=f"/models/{n}")
wrote = time.perf_counter() - began
spent = []
for _ in range(20):
    began = time.perf_counter()
    found = book.checkpoints(modality="audio", limit=100)
    spent.append(time.perf_counter() - began)
assert len(found) == min(100, models // 5)
print(json.dumps({"write": wrote / models, "find": sorted(spent)[10]}))
"""
THEIRS = """
import json, sys, time
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.entities.model_registry import ModelVersionTag
path, models = sys.argv[1], int(sys.argv[2])
store = SqlAlchemyStore(f"sqlite:///{path}")
began = time.perf_counter()
for n in range(models):
    store.create_registered_model(f"m{n}")
    store.create_model_version(f"m{n}", f"/models/{n}", tags=[
        ModelVersionTag("modality", "image" if n % 5 else "audio"),
        ModelVersionTag("strategy", "average")])
wrote = time.perf_counter() - began
spent = []
for _ in range(20):
    began = time.perf_counter()
    found = store.search_model_versions("tags.modality = 'audio'", max_results=100)
    spent.append(time.perf_counter() - began)
assert len(found) == min(100, models // 5)
print(json.dumps({"write": wrote / models, "find": sorted(spent)[10]}))
"""


def run(python: str, code: str, folder: Path, models: int) -> dict[str, float]:
    """Run one side in a process and an empty file of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        done = subprocess.run(
            [python, "-c", code, str(Path(fresh) / "registry.db"), str(models)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print medians of three turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("python", help="an interpreter that has mlflow")
    parser.add_argument("--models", type=int, default=500)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    turns = [
        (
            run(sys.executable, OURS, options.folder, options.models),
            run(options.python, THEIRS, options.folder, options.models),
        )
        for _ in range(3)
    ]
    for what, said in (("write", "record a model with tags"), ("find", "find by tag, 100 rows")):
        ours, theirs = (median(turn[side][what] for turn in turns) for side in (0, 1))
        sys.stdout.write(
            f"{said}: {1000 * ours:.2f} ms against {1000 * theirs:.2f} ms:"
            f" {theirs / ours:.1f} x faster (median of 3)\n"
        )
    sys.stdout.write(f"{time.perf_counter() - began:.0f} s in all\n")


if __name__ == "__main__":
    main()
