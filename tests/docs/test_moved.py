"""Modules that moved can be imported under their old names for one version."""

import sys
from importlib import import_module

import pytest

from omnireg.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_new_module(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a copy of it; and it says where to go."""
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} moved to {new}"):
        found = import_module(old)
    assert found is import_module(new)
    assert found.__spec__ is not None
    assert found.__spec__.name == new
