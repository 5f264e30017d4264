"""mergekit's merge options on our command line: the same ones, and none that is not read."""

from pathlib import Path
from typing import Any

import click
import pytest
from mergekit.options import add_merge_options

import omnireg
from omnireg.cli.merge_options import MERGEKIT, SHARED
from omnireg.demo.story import FAMILY
from omnireg.engine import options
from omnireg.errors import ConfigError
from tests_support import Run

#: omnireg decides these, or has its own
OURS = {"quiet", "verbosity", "random_seed", "write_model_card", "safe_serialization"}


def test_the_options_are_mergekits() -> None:
    """By name, by how they are typed, and by whether they take a value."""
    decorated: Any = add_merge_options(lambda: None)
    theirs = {o.name: o for o in decorated.__click_params__ if o.name not in OURS}
    ours = {option.name: option for option in (*SHARED, *MERGEKIT)}
    assert ours.keys() == theirs.keys()
    for name, option in ours.items():
        other = theirs[name]
        assert set(option.opts) == set(other.opts)
        assert set(option.secondary_opts) == set(other.secondary_opts)
        assert option.is_flag == other.is_flag
        assert option.type == other.type or name == "out_shard_size" or option.is_flag


def test_both_groups_are_those_that_engines_read() -> None:
    """What is listed for every engine is read by every engine, the rest by mergekit."""
    assert {option.name for option in SHARED} == options._EVERYWHERE
    assert {option.name for option in (*SHARED, *MERGEKIT)} == options._PLANNER


def text() -> str:
    """Return a recipe of a model and its base; the tests never read their weights."""
    family = Path(FAMILY)
    return (
        f"merge_method: average\nbase_model: {family / 'base'}\n"
        f"models:\n  - model: {family / 'image'}\n"
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--no-copy-tokenizer",), "--copy-tokenizer is read only where mergekit plans"),
        (("--trust-remote-code",), "drop --trust-remote-code"),
        (("--lora-merge-dtype", "nonsense"), "drop --lora-merge-dtype"),
        (("--write-threads", "2"), "--write-threads is for --engine mergekit"),
        (("--engine", "mergekit", "--multi-gpu"), "drop --multi-gpu"),
    ],
)
def test_what_nobody_reads_is_refused(typed: tuple[str, ...], said: str, run: Run) -> None:
    """Before the work, with what to type instead."""
    Path("r.yml").write_text(text())
    done = run("merge", "r.yml", "out", *typed)
    assert done.code == 1
    assert said in done.err
    assert not Path("out").exists()


def test_unknown_options_are_refused_from_python() -> None:
    """With the closest that there is."""
    with pytest.raises(ConfigError, match="did you mean 'out_shard_size'"):
        omnireg.merge(text(), "out", options={"out_shard_sise": 5}, record=False)


def test_a_dtype_of_adapters_is_checked() -> None:
    """Where mergekit would read it."""
    base = Path(FAMILY) / "base"
    layers = f"    - {{model: {base}, layer_range: [0, 2]}}\n"
    sliced = f"merge_method: average\nslices:\n  - sources:\n{layers}{layers}"
    with pytest.raises(ConfigError, match="unknown dtype 'nonsense'"):
        omnireg.merge(sliced, "out", options={"lora_merge_dtype": "nonsense"}, record=False)


def test_help_needs_no_mergekit(run: Run) -> None:
    """Both groups are listed."""
    done = run("merge", "--help")
    assert done.code == 0
    assert "Options of --engine mergekit" in done.out
    listed = click.unstyle(done.out)
    assert all(option.opts[0] in listed for option in (*SHARED, *MERGEKIT))
