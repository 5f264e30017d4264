"""Stop commands at random moments, then type them again: everything is whole, and recorded.

    python tests/hostile/signals.py FOLDER [--cases N] [--seed S]

Merges, packages, extractions, additions and manifests. Each case runs a command in a process of its
own, sends it SIGKILL, SIGTERM or SIGINT at a random moment, and runs it again to the end. Then its
output has to be what an undisturbed run makes, the registry has to know it, and nothing may be left
beside it. Prints one JSON object; what is wrong is listed under ``wrong``.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from omnireg.checkpoints import contents
from omnireg.cli import main as omnireg
from omnireg.package import fingerprint_of
from omnireg.registry import Registry
from omnireg.testing.family import make_family

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Story:
    """A command, what it makes, and how long it takes undisturbed."""

    name: str
    command: tuple[str, ...]
    made: str | None
    fingerprint: str | None = None
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)


def start(command: tuple[str, ...], log: Path) -> int:
    """Run a command in a forked process of its own, which is warm already; return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = omnireg(list(command))
        sys.stdout.flush()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Return how a process ended: its code, or minus its signal."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def stories(folder: Path) -> list[Story]:
    """Write inputs, and return the commands to disturb."""
    family = make_family(folder / "family")
    models = [{"model": str(model)} for model in family.models]
    senses = dict(zip(("image", "audio"), map(str, family.models), strict=False))
    merged = {"merge_method": "omni_ties", "base_model": str(family.base), "models": models}
    packed = merged | {
        "merge_method": "mmer",
        "models": models[:2],
        "omnireg": {"output": "package", "modalities": senses},
    }
    (folder / "merge.yml").write_text(yaml.safe_dump(merged))
    (folder / "package.yml").write_text(yaml.safe_dump(packed))
    rows = [{"name": f"model-{n}", "kind": "base"} for n in range(2000)]
    (folder / "rows.jsonl").write_text(
        "\n".join(json.dumps(line) for line in ({"omnireg": 1}, *({"checkpoint": r} for r in rows)))
    )
    assert omnireg(["-q", "merge", "package.yml", "pkg"]) == 0
    extra = ("--modality", "video", "added")
    return [
        Story("merge", ("-q", "merge", "merge.yml", "merged", "--out-shard-size", "1k"), "merged"),
        Story("package", ("-q", "merge", "package.yml", "packed"), "packed"),
        Story("extract", ("-q", "mmer", "extract", "pkg", "--modality", "image", "taken"), "taken"),
        Story("add", ("-q", "mmer", "add", "pkg", str(family.models[2]), *extra), "added"),
        Story("apply", ("-q", "apply", "rows.jsonl"), None),
    ]


def undisturbed(story: Story) -> None:
    """Find out what a command makes, and how long it takes."""
    began = time.monotonic()
    code = wait(start(story.command, Path("log")))
    story.seconds = time.monotonic() - began
    assert code == 0, Path("log").read_text()
    story.fingerprint = fingerprint_of(Path(story.made)) if story.made else None


def forget(story: Story) -> None:
    """Remove what a command made, from the disk and from the registry."""
    for path in Path().glob(f"*{story.made or 'nothing'}*"):
        shutil.rmtree(path)
    for suffix in ("", "-wal", "-shm"):
        Path(f"registry.db{suffix}").unlink(missing_ok=True)
    shutil.copyfile("registry.before", "registry.db")


def disturbed(story: Story, random_: random.Random) -> list[str]:
    """Stop a command, run it again, and return what is wrong then."""
    forget(story)
    number = random_.choice(SIGNALS)
    moment = random_.uniform(0, 1.1 * story.seconds)
    child = start(story.command, Path("log"))
    time.sleep(moment)
    with suppress(ProcessLookupError):
        os.kill(child, number)
    first = wait(child)
    story.counts["stopped" if first not in (0, 1) else "done"] += 1
    case = f"{story.name}, {signal.Signals(number).name} after {moment:.3f} s ({first})"
    told = Path("log").read_text()
    wrong = [f"{case}: {told[told.index('Traceback') :][:900]}"] if "Traceback" in told else []
    ended = not faults(story)
    code, again = wait(start(story.command, Path("log"))), Path("log").read_text()
    if code and not (ended and "already exists" in again):
        return [*wrong, f"{case}: again {code}: {again[-300:]}"]
    return wrong + [f"{case}: {each}" for each in faults(story)]


def faults(story: Story) -> list[str]:
    """Return what is not as an undisturbed run leaves it."""
    book = Registry("registry.db")
    if story.made is None:
        return [] if len(book.checkpoints(limit=None)) >= 2000 else ["rows are missing"]
    out = Path(story.made)
    if not out.exists():
        return ["nothing was made"]
    told = contents.read(out)
    found = [] if told and not list(contents.differences(out, told.files)) else ["not whole"]
    if fingerprint_of(out) != story.fingerprint:
        found.append("another fingerprint")
    known: Any = book.get(story.made)
    if known is None or known.fingerprint != story.fingerprint or not known.parents:
        found.append("not recorded")
    left = {path.name for path in Path().glob(f"*{story.made}*")} - {story.made}
    return found + ([f"left {left}"] if left else [])


def main() -> None:
    """Disturb commands, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    os.chdir(options.folder)
    os.environ |= {"OMNIREG_REGISTRY": "registry.db", "OMNIREG_CACHE": "cache"}
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = stories(options.folder.resolve())
    Path("registry.db").rename("registry.whole")
    Registry("registry.whole").close()
    shutil.copyfile("registry.whole", "registry.before")
    random_, wrong = random.Random(options.seed), []
    for story in found:
        forget(story)
        undisturbed(story)
    for number in range(options.cases):
        wrong += disturbed(found[number % len(found)], random_)
    counts = {story.name: dict(story.counts) for story in found}
    sys.stdout.write(json.dumps({"counts": counts, "wrong": wrong}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
