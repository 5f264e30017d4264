"""What adding a model to a package costs the others, and what the new one keeps.

    python tests/bench/adding.py FOLDER

The tiny family, by generation on its test split: a package of two hosts, and the third one added.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import omnireg
from omnireg.demo import story
from omnireg.demo.questions import score
from omnireg.demo.tasks import items
from omnireg.evaluation.opening import open_subject
from omnireg.package import Package
from omnireg.package.adding import add
from omnireg.package.extracting import extract

SENSES = story.SENSES


def accuracy(package: Package, sense: str, folder: Path) -> float:
    """Return the accuracy of one model of a package on its own items."""
    shutil.rmtree(folder, ignore_errors=True)
    extract(package, sense, folder)
    return score(open_subject(folder, dtype="float32"), items(cast(Any, sense), "test")).value


def main() -> None:
    """Print a row for every model and every order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    say = sys.stdout.write
    for new in SENSES:
        old = [sense for sense in SENSES if sense != new]
        models = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in old)
        senses = ", ".join(f"{sense}: {story.FAMILY / sense}" for sense in old)
        for left in ("two", "three"):
            shutil.rmtree(folder / left, ignore_errors=True)
        omnireg.merge(
            f"merge_method: mmer\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{models}"
            "parameters: {density: 0.5}\n"
            f"omnireg: {{output: package, modalities: {{{senses}}}}}\n",
            folder / "two",
            record=False,
        )
        two = Package(folder / "two")
        add(two, str(story.FAMILY / new), new, folder / "three")
        three = Package(folder / "three")
        for sense in old:
            before, after = (accuracy(p, sense, folder / "one") for p in (two, three))
            say(f"{new} added: {sense} {before:.4f} before, {after:.4f} after\n")
        alone = open_subject(story.FAMILY / new, dtype="float32")
        own = score(alone, items(cast(Any, new), "test")).value
        kept = accuracy(three, new, folder / "one")
        say(f"{new} added: {new} {kept:.4f}, its own model {own:.4f}\n")


if __name__ == "__main__":
    main()
