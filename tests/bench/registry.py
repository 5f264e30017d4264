"""The registry at the Hub's scale: bulk apply, then the questions people ask.

    python tests/bench/registry.py /tmp/bench [--checkpoints 2000000] [--registry URL]

The family has the Hub's shape: a few bases have most descendants, chains are up to 20 deep, and
merges have two or three parents, merges among them. Queries are timed inside the process.
"""

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from omnireg import Registry

BENCHMARKS = [f"bench-{number}" for number in range(20)]
BASES = 40


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def family(checkpoints: int) -> Iterator[dict[str, Any]]:
    """Yield the items of a family: as many checkpoints, twice the edges, five times the scores."""
    chance = random.Random(7)
    yield {"omnireg": 1}
    for name in BENCHMARKS:
        yield {"benchmark": {"name": name, "metric": "accuracy", "unit": "%"}}
    depth = [0] * checkpoints
    for number in range(checkpoints):
        item: dict[str, Any] = {"name": f"org-{number % 9973}/model-{number}", "kind": "base"}
        if number >= BASES:
            parents = {_ancestor(chance, number, depth) for _ in range(chance.choice((1, 2, 2, 3)))}
            depth[number] = 1 + max(depth[parent] for parent in parents)
            merged = len(parents) > 1
            item["kind"] = "merged" if merged else "finetuned"
            item["modalities"] = ["image"] if number % 3 else ["audio", "image"]
            item["fingerprint"] = f"{number:064x}"
            item["parents"] = [
                {
                    "name": f"org-{p % 9973}/model-{p}",
                    "role": "model" if merged else "finetuned_from",
                }
                for p in sorted(parents)
            ]
        yield {"checkpoint": item}
        for place in chance.sample(range(len(BENCHMARKS)), 5):
            yield {
                "score": {
                    "checkpoint": item["name"],
                    "benchmark": BENCHMARKS[place],
                    "value": round(chance.gauss(50, 12), 3),
                    "n": 1000,
                    "evaluator": "lm-eval",
                }
            }


def _ancestor(chance: random.Random, number: int, depth: list[int]) -> int:
    """Return a parent: one of the popular bases, or anything that is not 20 deep yet."""
    if chance.random() < 0.6:
        return min(int(chance.paretovariate(1.0)) - 1, BASES - 1)
    parent = chance.randrange(number)
    return parent if depth[parent] < 20 else parent % BASES


def written(path: Path, checkpoints: int) -> int:
    """Write the family as JSON Lines, unless it is there, and return how many rows it declares."""
    if not path.exists():
        with path.open("w", encoding="utf-8") as stream:
            for item in family(checkpoints):
                stream.write(json.dumps(item) + "\n")
    with path.open("rb") as stream:
        lines = sum(1 for _ in stream)
    return lines


def timed(name: str, ask: Callable[[], Any], times: int = 40) -> None:
    """Print median and 95th percentile of a question."""
    ask()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        spent.append(1000 * (time.perf_counter() - began))
    say(f"{name}: median {median(spent):.2f} ms, p95 {quantiles(spent, n=20)[-1]:.2f} ms")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=int, default=2_000_000)
    parser.add_argument("--registry", help="an empty registry [default: a file in FOLDER]")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"family-{options.checkpoints}.jsonl"
    lines = written(path, options.checkpoints)
    file = folder / f"registry-{options.checkpoints}.db"
    if not options.registry:
        for left in folder.glob(f"{file.name}*"):
            left.unlink()
    book = Registry(options.registry or file)
    if options.registry:
        book.upgrade()
    began = time.perf_counter()
    counts = book.apply(path).counts
    spent = time.perf_counter() - began
    edges = book.sql("SELECT count(*) FROM v_parents").rows[0][0]
    rows = sum(counts["create"].values()) + edges
    say(f"{lines} lines, {rows} rows ({edges} edges): {spent:.1f} s, {rows / spent:.0f} rows/s")
    say(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    chance = random.Random(3)

    def one() -> str:
        number = chance.randrange(BASES, options.checkpoints)
        return f"org-{number % 9973}/model-{number}"

    timed("show", lambda: book.find(one()), 200)
    timed("lineage up", lambda: book.lineage(one(), direction="up"), 200)
    timed(
        "lineage down, first 200",
        lambda: book.lineage("org-0/model-0", direction="down", limit=200),
    )
    timed(
        "lineage down, page at 10 000",
        lambda: book.lineage("org-0/model-0", direction="down", limit=200, offset=10_000),
        10,
    )
    timed("leaderboard, top 50", lambda: book.leaderboard(chance.choice(BENCHMARKS), limit=50))
    timed("scores", lambda: book.scores(one()), 100)
    timed("list, 100 newest", book.checkpoints, 20)
    timed("compare", lambda: book.compare(one(), against=one()), 100)


if __name__ == "__main__":
    main()
