"""Damage a small package and a merge in thousands of ways, and look what is made of them.

    python tests/hostile/sweep.py FOLDER [--every N] [--edits N] [--seed S]

Two ways. A *flip* changes one bit of one file: whoever reads it has to refuse it by name, or make
what is made of the whole file. An *edit* changes documents and headers as somebody would who wants
to be believed: digests and seal are made anew. It may be refused or taken, but never ends in
another exception, a dead process, or a file outside of what was asked for. Prints one JSON object;
what is wrong is listed under ``wrong``.
"""

import argparse
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omnireg.checkpoints import contents
from omnireg.checkpoints.shards import read_header
from omnireg.errors import OmniregError
from omnireg.merging import merge
from omnireg.merging.verifying import verify
from omnireg.package import Package
from omnireg.package.adding import add
from omnireg.package.extracting import extract
from omnireg.package.inspecting import inspect
from omnireg.recording import add as record
from omnireg.registry import Registry
from omnireg.routed import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests_support import reseal
from zoo import SPECIES, house

HOSTS = {"image": "InternVLForConditionalGeneration", "audio": "Qwen2AudioForConditionalGeneration"}


@dataclass
class Outcome:
    """What came of all cases."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, case: str, *, bad: bool = False) -> None:
        """Count a case; a bad one is listed."""
        self.counts[what] += 1
        if bad:
            self.wrong.append(f"{case}: {what}")


@dataclass(frozen=True)
class Yard:
    """A folder with a base, hosts, one more model, a package and a merge of them, recorded."""

    folder: Path

    @property
    def book(self) -> Registry:
        """The registry that knows them."""
        return Registry(self.folder / "registry.db")

    def make(self) -> None:
        """Write all of it."""
        house(SPECIES["Qwen2ForCausalLM"], "legacy", self.folder / "base")
        for sense, name in HOSTS.items():
            house(SPECIES[name], "legacy", self.folder / sense)
        house(SPECIES["LlavaOnevisionForConditionalGeneration"], "legacy", self.folder / "more")
        where = {sense: str(self.folder / sense) for sense in HOSTS}
        models = "".join(f"  - model: {place}\n" for place in where.values())
        text = f"merge_method: mmer\nbase_model: {self.folder / 'base'}\nmodels:\n{models}"
        package = f"omnireg: {{output: package, modalities: {json.dumps(where)}}}\n"
        merge(text + package, self.folder / "package.whole", registry=self.book, name="package")
        merge(text, self.folder / "merge.whole", registry=self.book, name="merge")

    def fresh(self, name: str) -> Path:
        """Return a whole copy of the package or the merge, known to the registry there."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / f"{name}.whole", place)
        return place

    def clear(self) -> Path:
        """Return where outputs go, empty."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return out

    def outside(self) -> set[str]:
        """Return what there is beside outputs, so that more can be noticed."""
        return {path.name for path in self.folder.iterdir()}


# flips


def flips(yard: Yard, every: int, random_: random.Random) -> Iterator[tuple[str, Path, int, int]]:
    """Yield (folder, file, offset, bit) all over the files, most densely at their beginnings."""
    for name in ("package", "merge"):
        whole = yard.folder / f"{name}.whole"
        for file in sorted(path for path in whole.rglob("*") if path.is_file()):
            size = file.stat().st_size
            offsets = {*range(0, size, max(1, size // every)), *range(min(size, 16))}
            for offset in sorted(offsets):
                yield name, file.relative_to(whole), offset, random_.randrange(8)


def flip_all(yard: Yard, every: int, seed: int) -> Outcome:
    """Make every flip, undo it after it, and say what came of each."""
    found = Outcome()
    wholes = {name: yard.fresh(name) for name in ("package", "merge")}
    for name, place in wholes.items():
        record(yard.book, str(place), name=name)
    wanted = extract(Package(wholes["package"]), "image", yard.clear() / "x")
    whole = _digests(yard.folder / "out" / "x")
    for name, file, offset, bit in flips(yard, every, random.Random(seed)):
        place = wholes[name] / file
        case = f"{name}/{file} byte {offset} bit {bit}"
        before = place.read_bytes()
        changed = bytearray(before)
        changed[offset] ^= 1 << bit
        place.write_bytes(changed)
        try:
            _judge(found, case, file.name, "verify", partial(_verified, yard, name))
            if name == "package":
                _judge(found, case, file.name, "extract", partial(_extracted, yard, wanted, whole))
        finally:
            place.write_bytes(before)
    return found


def _verified(yard: Yard, name: str) -> bool:
    verdict = verify(yard.book, name)
    if not verdict.ok:
        raise OmniregError("; ".join((*verdict.files, "other weights")))
    return False


def _extracted(yard: Yard, wanted: str, whole: dict[str, str]) -> bool:
    out = yard.clear() / "x"
    found = extract(Package(yard.folder / "package"), "image", out)
    return (found, _digests(out)) == (wanted, whole)


def _digests(folder: Path) -> dict[str, str]:
    found = contents.digests(folder)
    return {name: digest for name, digest in found.items() if name != contents.NAME}


def _judge(found: Outcome, case: str, file: str, what: str, act: Callable[[], bool]) -> None:
    """Count an act as refused by name, without effect, or wrong."""
    try:
        same = act()
    except OmniregError as exc:
        named = file in str(exc)
        found.note(f"{what}: refused" + ("" if named else " by no name"), case, bad=not named)
    except BaseException as exc:
        found.note(f"{what}: {type(exc).__name__}: {exc}", case, bad=True)
    else:
        found.note(f"{what}: " + ("without effect" if same else "TAKEN"), case, bad=not same)


# edits

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 10**9, 10**19, 2**63, 0.5, 1e308, "", "x", "..", "../x", "/tmp/x",
    "a/b", "image", "base", "\u202e", "\ud800", "x" * 300, "CON", [], [[]], {}, {"a": {}}, [0, 1],
    ["../../x"], "BF16", "F32", "U8", [4, 4], [10**9, 10**9],
)  # fmt: skip


def edit(value: Any, random_: random.Random) -> Any:
    """Return a document with one thing in it replaced, removed, added, repeated or renamed."""
    if not isinstance(value, dict | list) or not value or random_.random() < 0.15:
        return random_.choice(ODD)
    made: Any = dict(value) if isinstance(value, dict) else list(value)
    key = random_.choice(list(made)) if isinstance(made, dict) else random_.randrange(len(made))
    match random_.randrange(8):
        case 0:
            del made[key]
        case 1 if isinstance(made, dict):
            made[str(random_.choice(ODD))] = made.pop(key)
        case 1:
            made.append(made[key])
        case 2 if isinstance(made, dict):
            made[random_.choice(("x", "models", "files"))] = random_.choice(ODD)
        case 3 if isinstance(made[key], int) and not isinstance(made[key], bool):
            made[key] += random_.choice((-8, -1, 1, 2, 8, 64, 4096))
        case _:
            made[key] = edit(made[key], random_)
    return made


def edit_file(file: Path, random_: random.Random) -> None:
    """Edit a document, the header of a shard, or the length of one."""
    raw = file.read_bytes()
    if file.suffix != ".safetensors":
        if random_.random() < 0.1:
            file.write_bytes(raw[: random_.randrange(len(raw))])
            return
        text = json.dumps(edit(json.loads(raw), random_))
        file.write_text(text, encoding="utf-8", errors="replace")
        return
    if random_.random() < 0.2:
        cut = random_.randrange(len(raw))
        file.write_bytes(random_.choice((raw[:cut], raw + raw[:8], raw[cut:])))
        return
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if random_.random() < 0.5:
        _reshape(header, random_)
    else:
        header = edit(header, random_)
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length :])


def _reshape(header: dict[str, Any], random_: random.Random) -> None:
    """Give a tensor another dtype and shape of as many bytes, or swap two tensors."""
    names = [name for name in header if name != "__metadata__"]
    one, other = random_.choice(names), random_.choice(names)
    entry = header[one]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    match random_.randrange(4):
        case 0:
            header[one], header[other] = header[other], header[one]
        case 1:
            entry |= {"dtype": "U8", "shape": [size]}
        case 2:
            entry |= {"dtype": "F32", "shape": [size // 4]}
        case _:
            entry |= {"dtype": "BF16", "shape": [size // 2]}


def scramble(file: Path, random_: random.Random) -> None:
    """Set bytes of a shard's data to ones, or to anything: supports and masks that lie."""
    raw = bytearray(file.read_bytes())
    headers = list(read_header(file).values())
    chosen = random_.choice([h for h in headers if h.nbytes])
    fill = random_.choice((b"\xff", b"\x00", None))
    for at in range(chosen.start, chosen.end):
        raw[at] = fill[0] if fill else random_.randrange(256)
    file.write_bytes(raw)


def edit_all(yard: Yard, count: int, seed: int, say: Callable[[str], None]) -> Outcome:
    """Make edits of the package, one after the other, and use each."""
    found = Outcome()
    for number in range(count):
        random_ = random.Random(seed * 1_000_003 + number)
        place = yard.fresh("package")
        files = [
            path for path in sorted(place.rglob("*")) if path.suffix in (".json", ".safetensors")
        ]
        chosen = random_.choice([*files, *([place / contents.NAME] * 6)])
        case = f"edit {number} of {chosen.relative_to(place)}"
        say(case)
        if chosen.suffix == ".safetensors" and random_.random() < 0.4:
            scramble(chosen, random_)
        else:
            edit_file(chosen, random_)
        _reseal(place)
        uses: tuple[tuple[str, Callable[[Path, Path], object]], ...] = (
            ("extract", lambda p, o: extract(Package(p), "image", o / "x")),
            ("inspect", lambda p, o: inspect(Package(p)).to_json()),
            ("add", lambda p, o: add(Package(p), str(yard.folder / "more"), "video", o / "x")),
            ("load", lambda p, o: load(p)),
            ("trust", lambda p, o: extract(Package(p, trust=True), "audio", o / "x")),
        )
        weights = (5, 1, 1, 2, 1)
        for what, use in (*random_.choices(uses, weights, k=1), uses[0]):
            _use(found, yard, f"{case}: {what}", place, use)
    return found


def _reseal(place: Path) -> None:
    try:
        reseal(place)
    except (ValueError, AttributeError, TypeError):
        return  # what is no document any more cannot be sealed


def _use(
    found: Outcome, yard: Yard, case: str, place: Path, use: Callable[[Path, Path], object]
) -> None:
    out, before = yard.clear(), yard.outside()
    try:
        use(place, out)
    except OmniregError as exc:
        lines = str(exc).count("\n")
        left = [path.name for path in out.iterdir()]
        found.note("refused" if not (lines or left) else f"refused, left {left}: {exc}", case,
                   bad=bool(lines or left))  # fmt: skip
    except BaseException as exc:
        found.note(f"{type(exc).__name__}: {exc}"[:300], case, bad=True)
    else:
        more = {path.name for path in out.iterdir()} - {"x"}
        found.note("taken" if not more else f"taken, left {more}", case, bad=bool(more))
    if yard.outside() != before:
        found.note(f"wrote {yard.outside() - before} outside", case, bad=True)


def main() -> None:
    """Make both, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=4, help="flips of each file, at least")
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMNIREG_CACHE", str(folder.parent / "cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    yard = Yard(folder)
    if not (folder / "merge.whole").exists():
        yard.make()
    yard.clear()
    last = folder.parent / "last-case"
    flipped = flip_all(yard, options.every, options.seed)
    edited = edit_all(yard, options.edits, options.seed, lambda case: _write(last, case))
    counts = {"flips": dict(flipped.counts), "edits": dict(edited.counts)}
    wrong = flipped.wrong + edited.wrong
    sys.stdout.write(json.dumps({**counts, "wrong": wrong}, indent=1) + "\n")
    sys.exit(bool(wrong))


def _write(file: Path, case: str) -> None:
    file.write_text(case)


if __name__ == "__main__":
    main()
