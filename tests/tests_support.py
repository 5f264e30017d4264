"""Types and small builders that several test modules share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url


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


def database_at(server: str, name: str) -> str:
    """Return the URL of a database on a server."""
    return make_url(server).set(database=name).render_as_string(hide_password=False)
