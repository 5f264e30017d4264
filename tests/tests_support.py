"""Types and small builders that several test modules share."""

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from omnireg.checkpoints import contents

_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
target_delimiter: ""
generation_kwargs: {{max_gen_toks: 8, do_sample: false, until: ["<|endoftext|>"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.5}}
"""


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def distribution(site: Path, name: str, source: str, version: str = "1.0") -> None:
    """Install a distribution with one module and an entry point in the group ``omnireg``."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[omnireg]\nplugin = {module}\n")


def reseal(folder: Path, said: Mapping[str, Any] | None = None) -> None:
    """Write ``omnireg.json`` anew, as somebody would who wants an edited folder to be believed."""
    told = json.loads((folder / contents.NAME).read_text()) | dict(said or {})
    contents.write(folder, {k: v for k, v in told.items() if k not in ("files", "seal")})


def database_at(server: str, name: str) -> str:
    """Return the URL of a database on a server."""
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def recipe(method: str, models: str, base: str | None, extra: str = "") -> str:
    """Return YAML for a merge of the family's language models."""
    place = {"base": "family/base"}.get(base or "", base)
    head = f"base_model: {place}\n" if place else ""
    return f"merge_method: {method}\n{head}models:\n{models}{extra}"


def write_task(
    folder: Path, rows: Iterable[Mapping[str, str]], name: str = "tiny_words", more: str = ""
) -> Path:
    """Write a task of lm-evaluation-harness about questions q with answers a; return its folder."""
    folder.mkdir(exist_ok=True)
    data = folder / "data.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.yaml").write_text(_TASK.format(name=name, data=data) + more)
    return folder


def digit_probe(folder: Path) -> Path:
    """Write the family's questions about pictures of digits, one in twenty, as a file of items."""
    from omnireg.demo import questions

    questions.write(folder, ["image"])
    file = questions.file_of(folder, "image")
    digits = [line for line in file.read_text().splitlines() if '"category": "digit"' in line]
    file.write_text("\n".join(digits[::20]) + "\n")
    return file


def is_odd(character: str) -> bool:
    """Whether a character moves the cursor or turns the reading order, as Unicode's tables say."""
    turning = ["LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"]
    return (
        (unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t")
        or unicodedata.bidirectional(character) in turning
        or unicodedata.name(character, "").endswith(("-TO-RIGHT MARK", "-TO-LEFT MARK"))
        or unicodedata.name(character, "") == "ARABIC LETTER MARK"
    )
