"""Modules that moved can be imported under their old names for one version."""

import sys
from importlib import import_module

import pytest

from omnireg.moved import MOVED, renamed


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_new_module(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a copy of it; and it says where to go."""
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} moved to {new}"):
        found = import_module(old)
    assert found is import_module(new)
    assert found.__spec__ is not None
    assert found.__spec__.name == new


def test_an_old_argument_is_the_new_one() -> None:
    """It warns, and the call is the same."""

    @renamed(host="plugins")
    def plan(recipe: str, *, plugins: int = 0) -> tuple[str, int]:
        """Return what was given."""
        return recipe, plugins

    assert plan("r", plugins=3) == ("r", 3)
    with pytest.warns(DeprecationWarning, match="host=.* is called plugins= now"):
        assert plan("r", **{"host": 3}) == ("r", 3)
