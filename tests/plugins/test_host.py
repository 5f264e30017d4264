"""The plugin host: isolation, provenance, clashes, and what importing costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnireg import hookspecs
from omnireg.errors import ConfigError, PluginError
from omnireg.planning import plan
from omnireg.plugins.host import DISABLE_VARIABLE, PluginHost, Status
from tests_support import Outcome, Run, distribution

GOOD = """
from omnireg import HostLayout, hookimpl

@hookimpl
def omnireg_register_strategies(register):
    register("{module}_impl:METHOD", name="{strategy}")

@hookimpl
def omnireg_register_hosts(register):
    register(HostLayout(("{strategy}ForConditionalGeneration",), carried=("lidar.*",)))
"""
IMPLEMENTATION = """
import torch
from mergekit.merge_methods import TensorGroup, merge_method

@merge_method(name="{strategy}", pretty_name="First", reference_url="https://example.org")
def METHOD(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0].clone()
"""


FRESH = """
import torch
from mergekit.merge_methods import TensorGroup, merge_method
from omnireg import hookimpl

def first(group: TensorGroup) -> torch.Tensor:
    return group.tensors[0].clone()

@hookimpl
def omnireg_register_strategies(register):
    register(merge_method(name="fresh", pretty_name="Fresh", reference_url="https://x.org")(first))
"""


def good(site: Path, name: str, strategy: str) -> None:
    """Install a working third-party plugin."""
    module = name.replace("-", "_")
    distribution(site, name, GOOD.format(module=module, strategy=strategy))
    (site / f"{module}_impl.py").write_text(IMPLEMENTATION.format(strategy=strategy))


def test_built_ins_enter_through_the_same_hooks() -> None:
    """Four strategies and the host classes come from omnireg's own entry points."""
    plugins = PluginHost()
    own = [s.name for s in plugins.strategies.values() if s.origin.distribution == "omnireg"]
    assert own == ["average", "delta_weighted", "omni_ties", "mmer"]
    assert "Qwen2AudioForConditionalGeneration" in plugins.layouts
    assert all(plugin.status is Status.OK for plugin in plugins.plugins)


def test_a_strangers_strategy_and_host_class_are_found(site: Path) -> None:
    """An installed distribution adds a strategy and a host layout, with its provenance."""
    good(site, "omnireg-first", "first")
    plugins = PluginHost()
    assert plugins.strategies["first"].origin.distribution == "omnireg-first"
    assert plugins.strategies["first"].origin.version == "1.0"
    assert plugins.strategies["first"].load().spec.name == "first"
    assert plugins.layouts["firstForConditionalGeneration"].carried == ("lidar.*",)
    plugins.install()
    plugins.install()
    assert "first" in plugins.methods()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "from omnireg import hookimpl\n@hookimpl\n"
            "def omnireg_register_stratgies(register): ...",
            "unknown hook 'omnireg_register_stratgies' (did you mean"
            " 'omnireg_register_strategies'?)",
        ),
        (
            "from omnireg import hookimpl\n@hookimpl\n"
            "def omnireg_register_strategies(register): register('a:b')",
            "without a name",
        ),
        (
            "from omnireg import hookimpl\n@hookimpl\n"
            "def omnireg_register_strategies(register):\n"
            "    register('a:b', name='half')\n    raise RuntimeError('half way')",
            "RuntimeError: half way",
        ),
        (
            "from omnireg import hookimpl\n@hookimpl\n"
            "def omnireg_register_strategies(registry): ...",
            "registry",
        ),
    ],
)
def test_a_broken_plugin_is_listed_warned_about_once_and_harms_nobody(
    site: Path, source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others load; the broken one says why and registers nothing."""
    distribution(site, "omnireg-broken", source)
    good(site, "omnireg-second", "second")
    plugins = PluginHost()
    (plugin,) = plugins.broken()
    assert plugin.origin.distribution == "omnireg-broken"
    assert reason in str(plugin.error)
    assert {"second", "mmer"} <= set(plugins.strategies)
    assert "half" not in plugins.strategies
    assert len([r for r in caplog.records if "omnireg-broken" in r.message]) == 1


def test_a_strategy_that_cannot_be_imported_harms_nobody_else(
    site: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Lazily registered and broken: the others are installed and listed; asking for it fails."""
    good(site, "omnireg-hollow", "hollow")
    (site / "omnireg_hollow_impl.py").write_text("raise RuntimeError('hollow')")
    plugins = PluginHost()
    plugins.install()
    assert "hollow" in caplog.text
    listed = {entry["name"]: entry for entry in json.loads(run("strategies", "--json").out)}
    assert listed["mmer"]["status"] == "ok"
    assert listed["hollow"]["status"] == "broken"
    assert "RuntimeError: hollow" in listed["hollow"]["error"]
    with pytest.raises(PluginError, match="of omnireg-hollow cannot be imported"):
        plugins.strategies["hollow"].load()


def test_a_name_clash_names_both_distributions(site: Path) -> None:
    """Two strangers with one name: an error that names both and how to choose."""
    good(site, "omnireg-one", "same")
    good(site, "omnireg-two", "same")
    with pytest.raises(PluginError, match=r"both omnireg-one 1.0 and omnireg-two 1.0") as error:
        _ = PluginHost().strategies
    assert f"{DISABLE_VARIABLE}=omnireg-two" in str(error.value)


def test_a_stranger_cannot_take_a_built_in_or_mergekit_name(site: Path) -> None:
    """Both distributions are named there too."""
    good(site, "omnireg-linear", "linear")
    with pytest.raises(PluginError, match=r"omnireg-linear.*mergekit"):
        PluginHost().methods()
    good(site, "omnireg-mine", "mmer")
    with pytest.raises(PluginError, match=r"both omnireg 0.* and omnireg-mine"):
        _ = PluginHost().strategies


@pytest.mark.parametrize("value", ["1", "all", "omnireg-third", "other, OMNIREG-THIRD"])
def test_third_party_plugins_can_be_turned_off(
    site: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """By name or all of them; the built-in ones stay."""
    good(site, "omnireg-third", "third")
    monkeypatch.setenv(DISABLE_VARIABLE, value)
    plugins = PluginHost()
    assert "third" not in plugins.strategies
    assert "mmer" in plugins.strategies
    with pytest.raises(ConfigError, match=f"{DISABLE_VARIABLE} turns off .*omnireg-third"):
        plan("merge_method: third\nmodels: [{model: a}, {model: b}]", plugins)


def test_a_single_file_plugin_is_known_by_its_digest(tmp_path: Path) -> None:
    """Loaded from a path; version is the sha256; a broken file is an error."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from omnireg import hookimpl\n"
        + IMPLEMENTATION.format(strategy="mine")
        + "\n@hookimpl\ndef omnireg_register_strategies(register): register(METHOD)\n"
    )
    plugins = PluginHost()
    plugins.load_file(file)
    assert plugins.strategies["mine"].origin.version.startswith("sha256:")
    file.write_text("import nothing_of_that_name")
    with pytest.raises(PluginError, match="is broken: ModuleNotFoundError"):
        PluginHost().load_file(file)
    with pytest.raises(PluginError, match="cannot read"):
        PluginHost().load_file(tmp_path / "none.py")


def test_every_hook_is_documented_and_known_to_the_host() -> None:
    """Adding a hook to the contract without wiring it fails here."""
    hooks = [name for name in vars(hookspecs) if name.startswith("omnireg_register")]
    assert sorted(hooks) == [
        "omnireg_register_evaluators",
        "omnireg_register_hosts",
        "omnireg_register_strategies",
    ]
    assert all(vars(hookspecs)[name].__doc__ for name in hooks)


def test_listing_plugins_and_help_do_not_import_torch(site: Path) -> None:
    """``plugins`` and ``--help`` stay cheap, lazily registered strategies included."""
    good(site, "omnireg-lazy", "lazy")
    program = (
        "import sys\nfrom omnireg.cli import main\n"
        "assert main(['--help']) == 0 and main(['plugins', '--json']) == 0\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "omnireg-lazy" in done.stdout


def test_plugins_and_strategies_commands_follow_the_contract(site: Path, run: Run) -> None:
    """JSON keys as documented; broken plugins are in the list; show suggests."""
    good(site, "omnireg-shown", "shown")
    distribution(site, "omnireg-bad", "import nothing_of_that_name")
    plugins = json.loads(run("--json", "plugins").out)
    by_name = {entry["distribution"]: entry for entry in plugins}
    assert by_name["omnireg-bad"]["status"] == "broken"
    assert by_name["omnireg-shown"]["strategies"] == ["shown"]
    assert set(plugins[0]) == {
        "distribution", "version", "entry_point", "status", "error", "strategies", "evaluators",
            "hooks",
    }  # fmt: skip
    strategies = json.loads(run("strategies", "--json").out)
    names = [entry["name"] for entry in strategies]
    assert {"shown", "mmer", "ties", "linear"} <= set(names)
    assert set(strategies[0]) == {
        "name", "pretty_name", "reference", "distribution", "version", "accelerated",
        "parameters", "status", "error",
    }  # fmt: skip
    accelerated = {entry["name"]: entry["accelerated"] for entry in strategies}
    assert accelerated["mmer"]
    assert accelerated["linear"]
    assert not accelerated["slerp"]
    assert not accelerated["shown"]
    shown: Outcome = run("strategies", "show", "mmer", "--json")
    parameters = {p["name"]: p for p in json.loads(shown.out)["parameters"]}
    assert parameters["density"]["default"] == 0.5
    assert parameters["density"]["scope"] == "non_base"
    refused = run("strategies", "show", "mmmer")
    assert refused.code == 1
    assert "did you mean 'mmer'?" in refused.err


@pytest.mark.parametrize(
    ("needs", "fits"),
    [("omnireg>=99", False), ("omnireg<0.0.1", False), ("omnireg>=0.1,<1", True),
     ("OmniReg ~=0.1; python_version < '3'", True), ("omnireg ((", True)],
)  # fmt: skip
def test_a_plugin_for_another_omnireg_is_broken_and_says_so(
    needs: str, fits: bool, site: Path
) -> None:
    """By what its distribution requires; too new or too old."""
    good(site, "omnireg-other", "other")
    file = site / "omnireg_other-1.0.dist-info" / "METADATA"
    file.write_text(file.read_text() + f"Requires-Dist: {needs}\n")
    (plugin,) = [p for p in PluginHost().plugins if p.origin.distribution == "omnireg-other"]
    assert (plugin.status is Status.OK) is fits
    if not fits:
        assert "omnireg-other 1.0 supports omnireg" in str(plugin.error)
        assert "install another version" in str(plugin.error)


def test_a_file_for_another_omnireg_is_refused(tmp_path: Path) -> None:
    """By its OMNIREG, a version specifier."""
    file = tmp_path / "mine.py"
    file.write_text('OMNIREG = ">=99"\n')
    with pytest.raises(PluginError, match=r"supports omnireg>=99, this is"):
        PluginHost().load_file(file)
    file.write_text('OMNIREG = ">=0.1,<1"\n')
    with pytest.raises(PluginError, match="registers nothing; write a function"):
        PluginHost().load_file(file)
    for wrong in ("'abc'", "3"):
        file.write_text(f"OMNIREG = {wrong}\n")
        with pytest.raises(PluginError, match="says no versions of omnireg"):
            PluginHost().load_file(file)


def test_a_method_built_anew_is_not_a_clash(site: Path) -> None:
    """A hook that makes its method at every call, in two hosts of one process."""
    distribution(site, "omnireg-fresh", FRESH)
    for _ in range(2):
        plugins = PluginHost()
        plugins.install()
        assert plugins.methods()["fresh"].origin.distribution == "omnireg-fresh"


FILE = """
import torch
from mergekit.merge_methods import BasePolicy, InputContract, TensorGroup, merge_method
from omnireg import hookimpl

@merge_method(
    name="{name}", pretty_name="Mine",
    contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=1),
)
def mine(group: TensorGroup) -> torch.Tensor:
    return group.base.tensor * {factor}

@hookimpl
def omnireg_register_strategies(register):
    register(mine)
"""


def with_file(file: Path, name: str, factor: float) -> PluginHost:
    """Write a plugin file, and return a host that loaded and installed it."""
    file.write_text(FILE.format(name=name, factor=factor))
    plugins = PluginHost()
    plugins.load_file(file)
    plugins.install()
    return plugins


def test_an_edited_file_is_what_merges(tmp_path: Path) -> None:
    """A notebook that edits its plugin and merges again; afterwards it is nobody's method."""
    from mergekit.merge_methods import get

    for factor in (1.0, 2.0):
        host = with_file(tmp_path / "mine.py", "mine", factor)
        strategy = host.methods()["mine"]
        assert strategy.origin.distribution == "mine.py"
        assert get("mine") is strategy.load()
    assert "mine" not in PluginHost().methods()


def test_a_file_is_loaded_again_in_one_host(tmp_path: Path) -> None:
    """As when a cell of a notebook runs twice; edited in between, or not."""
    file, host = tmp_path / "mine.py", PluginHost()
    versions = set()
    for factor in (1.0, 1.0, 2.0):
        file.write_text(FILE.format(name="mine", factor=factor))
        host.load_file(file)
        host.install()
        versions.add(host.methods()["mine"].origin.version)
    assert len(versions) == 2
    assert sum(plugin.origin.distribution == "mine.py" for plugin in host.plugins) == 1


@pytest.mark.parametrize("taken", ["linear", "mmer"])
def test_a_file_that_takes_a_name_is_told_to_choose_another(tmp_path: Path, taken: str) -> None:
    """It cannot be disabled by distribution."""
    with pytest.raises(PluginError, match=r"choose another name in .*mine\.py"):
        with_file(tmp_path / "mine.py", taken, 1.0)
