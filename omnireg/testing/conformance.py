"""What every strategy owes its users, as tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from omnireg.errors import OmniregError

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod
    from torch import Tensor

    from omnireg.planning import Merged
    from omnireg.testing.family import Family

DTYPES = ("float32", "bfloat16", "float16")
#: of float32 sums in another order
_CLOSE = 1e-5


def omnireg_conformance(
    strategy: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    order_invariant: bool = True,
    needs_stream: bool = False,
    mask_of: bool | None = None,
) -> type:
    """Return a class of tests for a registered strategy; give it a name that begins with Test.

    Args:
        strategy: its name.
        parameters: shared parameters to test it with; its defaults when None. A required one that
            names a model is given one if it is left out.
        order_invariant: whether the order of the models does not matter.
        needs_stream: whether these parameters need a first pass over the whole model, which only
            the streaming engine makes; mergekit's engine must then refuse them with an error.
        mask_of: whether it can take one model out of the merge; told from its parameters when None.
    """

    class Conformance(_Conformance):
        pass

    Conformance.strategy = strategy
    Conformance.parameters = dict(parameters or {})
    Conformance.order_invariant = order_invariant
    Conformance.needs_stream = needs_stream
    Conformance.mask_of = mask_of
    Conformance.__name__ = Conformance.__qualname__ = f"Test{strategy.title().replace('_', '')}"
    return Conformance


class _Conformance:
    """The tests; see :func:`omnireg_conformance`."""

    strategy: str
    parameters: Mapping[str, Any]
    order_invariant: bool
    needs_stream: bool
    mask_of: bool | None

    # what is common

    def _recipe(self, base: Path, models: Sequence[Path], **more: Any) -> str:
        import yaml

        return yaml.safe_dump(
            {
                "merge_method": self.strategy,
                "base_model": str(base),
                "models": [{"model": str(model)} for model in models],
                **({"parameters": given} if (given := self._given(models)) else {}),
                **more,
            },
            sort_keys=False,
        )

    def _given(self, models: Sequence[Path]) -> dict[str, Any]:
        """Return the parameters; what has to name a model names the first by name."""
        from omnireg.planning.parameters import names_a_model

        spec = self._method().spec
        named = [p.name for p in spec.shared_parameters if p.required and names_a_model(p)]
        return {**dict.fromkeys(named, str(min(models))), **self.parameters}

    def _method(self) -> "MergeMethod":
        from omnireg.plugins.host import PluginHost

        return PluginHost().methods()[self.strategy].load()

    def _merge(self, out: Path, base: Path, models: Sequence[Path], **how: Any) -> "Tensors":
        from omnireg.merging import merge

        more = how.pop("more", {})
        merge(self._recipe(base, models, **more), out, record=False, **how)
        return read(out)

    # values

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_no_change_gives_the_base(
        self, dtype: str, omnireg_family: "Callable[[str], Family]", tmp_path: Path
    ) -> None:
        """Where no model moved from the base, the merge is the base, bit for bit."""
        family = omnireg_family(dtype)
        found, base = self._merge(tmp_path / "out", family.base, family.same), read(family.base)
        assert set(found) == set(base)
        for name, tensor in base.items():
            assert found[name].equal(tensor), name

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_shape_and_dtype_are_kept(
        self, dtype: str, omnireg_family: "Callable[[str], Family]", tmp_path: Path
    ) -> None:
        """Every tensor has the base's shape and dtype, and finite values; some changed."""
        family = omnireg_family(dtype)
        found, base = self._merge(tmp_path / "out", family.base, family.models), read(family.base)
        for name, tensor in base.items():
            assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
            assert bool(found[name].isfinite().all()), name
        assert any(not found[name].equal(tensor) for name, tensor in base.items())

    def test_one_model_is_enough(self, omnireg_models: "Family", tmp_path: Path) -> None:
        """A merge of one model is finite and, like the model, not the base."""
        family = omnireg_models
        found, base = self._merge(tmp_path / "out", family.base, family.models[:1]), family.base
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())
        assert any(not found[name].equal(tensor) for name, tensor in read(base).items())

    def test_the_order_of_models(self, omnireg_models: "Family", tmp_path: Path) -> None:
        """Does not matter, but for rounding; unless the strategy says that it does."""
        import torch

        family = omnireg_models
        one = self._merge(tmp_path / "one", family.base, family.models)
        other = self._merge(tmp_path / "other", family.base, family.models[::-1])
        if not self.order_invariant:
            assert any(not one[name].equal(other[name]) for name in one)
            return
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=_CLOSE, atol=_CLOSE)

    def test_inputs_are_not_changed(self, omnireg_models: "Family") -> None:
        """Tensors that are handed over are the same afterwards, those of a first pass too."""
        from omnireg.engine.tensors import parameters_of
        from omnireg.hookspecs import Surveyed
        from omnireg.planning import plan
        from omnireg.plugins.host import PluginHost
        from omnireg.recipe import parse_recipe

        family = omnireg_models
        planned = plan(parse_recipe(self._recipe(family.base, family.models)), PluginHost())
        method = cast(Any, planned.strategy.load())
        models = tuple(str(model) for model in family.models)
        handed = [_Handed(merged, str(family.base)) for merged in list(planned.merged.values())[:4]]
        first = handed[0].merged
        bound = planned.resolver.bind(first.name, first.position)
        parameters, known = parameters_of(bound, method, models), Surveyed(models)
        while hasattr(method, "survey") and (survey := method.survey(known, parameters)):
            for number, each in enumerate(handed):
                known = replace(known, number=number)
                survey.add(method.observe(survey, each.group, known, parameters))
                each.check()
            known = Surveyed(models, survey.result())
        for number, each in enumerate(handed):
            known = replace(known, number=number)
            method.merge_group(
                each.group, **parameters, **({} if known.found is None else {"surveyed": known})
            )
            each.check()
            if hasattr(method, "side_outputs"):
                method.side_outputs(each.group, parameters, known)
                each.check()

    # runs

    def test_runs_agree(self, omnireg_models: "Family", tmp_path: Path) -> None:
        """Hash seeds, threads and processes change no bit."""
        family = omnireg_models
        self._merge(tmp_path / "here", family.base, family.models, threads=1)
        (tmp_path / "r.yml").write_text(self._recipe(family.base, family.models), encoding="utf-8")
        other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        done = subprocess.run(
            [sys.executable, "-m", "omnireg", "merge", "r.yml", "there", "--no-record",
             "--threads", "3"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONHASHSEED": other},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert fingerprint(tmp_path / "there") == fingerprint(tmp_path / "here")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_engines_agree(
        self, dtype: str, omnireg_family: "Callable[[str], Family]", tmp_path: Path
    ) -> None:
        """Both engines write the same bytes, or mergekit's says why it cannot."""
        family = omnireg_family(dtype)
        ours = self._merge(tmp_path / "s", family.base, family.models, engine="stream")
        if self.needs_stream:
            with pytest.raises(OmniregError, match="first pass"):
                self._merge(tmp_path / "m", family.base, family.models, engine="mergekit")
            return
        theirs = self._merge(tmp_path / "m", family.base, family.models, engine="mergekit")
        for name, tensor in ours.items():
            assert theirs[name].equal(tensor), name

    # forms of checkpoints

    def test_hosts_are_merged_by_their_language_model(
        self, omnireg_models: "Family", tmp_path: Path
    ) -> None:
        """Another prefix and more vocabulary rows: the backbone is merged, the host is carried."""
        family = omnireg_models
        models = [family.models[0], family.prefixed]
        backbone = self._merge(tmp_path / "words", family.base, models)
        base = read(family.base)
        assert {n: t.shape for n, t in backbone.items()} == {n: t.shape for n, t in base.items()}
        more = {"omnireg": {"output": "host", "host": str(family.prefixed)}}
        carried = self._merge(tmp_path / "host", family.base, models, more=more)
        own = read(family.prefixed)
        assert set(carried) == set(own)
        tower = [name for name in own if "vision_tower" in name or "projector" in name]
        assert tower
        for name in tower:
            assert carried[name].equal(own[name]), name

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_more_vocabulary_rows(
        self, dtype: str, omnireg_family: "Callable[[str], Family]", tmp_path: Path
    ) -> None:
        """Rows that base and model do not share count as not moved; the result has the base's."""
        family = omnireg_family(dtype)
        found, cut = (
            self._merge(tmp_path / model.name, family.base, [family.models[0], model])
            for model in (family.larger, family.cut)
        )
        assert set(found) == set(cut)
        for name, tensor in cut.items():
            assert found[name].equal(tensor), name

    def test_a_tensor_that_one_model_lacks(self, omnireg_models: "Family", tmp_path: Path) -> None:
        """A model without a head beside one that has it, and models that are all tied."""
        family = omnireg_models
        found = self._merge(tmp_path / "out", family.base, [family.models[0], family.lacking])
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())
        tied = self._merge(tmp_path / "tied", family.tied_base, family.tied_models)
        assert "lm_head.weight" not in tied

    def test_one_model_can_be_taken_out(self, omnireg_models: "Family", tmp_path: Path) -> None:
        """Of a package, byte for byte what ``mask_of`` gives; for strategies that have both."""
        from omnireg.package import Package
        from omnireg.package.extracting import extract

        method = self._method()
        names = {parameter.name for parameter in method.spec.parameters}
        can = hasattr(method, "side_outputs") and "mask_of" in names
        assert self.mask_of in (None, can), "mask_of and side_outputs go together"
        if not can:
            return
        family = omnireg_models
        senses = {"one": str(family.models[0]), "two": str(family.models[1])}
        more = {"omnireg": {"output": "package", "modalities": senses}}
        from omnireg.merging import merge

        models = family.models[:2]
        text = self._recipe(family.base, models, **more)
        merge(text, tmp_path / "package", record=False)
        extract(Package(tmp_path / "package"), "one", tmp_path / "taken")
        alone = {**self._given(models), "mask_of": str(family.models[0])}
        found = self._merge(
            tmp_path / "alone", family.base, models, more={"parameters": alone}, engine="stream"
        )
        taken = read(tmp_path / "taken")
        for name, tensor in found.items():
            assert taken[name].equal(tensor), name


class _Handed:
    """Copies of one merged tensor's inputs, which a method is given and should leave alone."""

    def __init__(self, merged: "Merged", base: str) -> None:
        from mergekit.merge_methods import TensorEntry, TensorGroup

        from omnireg.checkpoints.shards import ByteReader

        reader = ByteReader()
        self.merged = merged
        self._stored = {source.ref: bytes(source.bytes(reader)) for source in merged.sources}
        self.group = TensorGroup(
            tuple(
                TensorEntry(source.ref, source.tensor(reader).clone(), source.ref == base)
                for source in merged.sources
            )
        )

    def check(self) -> None:
        """Compare them with what is stored."""
        from omnireg.checkpoints.tensors import as_bytes

        for entry in self.group.entries:
            same = as_bytes(entry.tensor.detach()) == self._stored[entry.id]
            assert same, f"the method changed its input {entry.id} in tensor {self.merged.name}"


Tensors = dict[str, "Tensor"]


def read(folder: Path) -> Tensors:
    """Return all tensors of a checkpoint."""
    from safetensors.torch import load_file

    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def fingerprint(folder: Path) -> str:
    """Return what identifies a checkpoint's weights."""
    from omnireg.checkpoints.checkpoint import Checkpoint

    return Checkpoint(str(folder), folder.resolve()).fingerprint
