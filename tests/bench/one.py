"""Run one merge in this process and print its engine time and peak private memory as JSON.

An earlier output is deleted just before the clock starts, so that its pages of memory are there to
be used again, as they are for a ``cp`` over an older copy.
"""

import json
import shutil
import sys
import threading
import time
from pathlib import Path


def private_bytes() -> int:
    """Return the anonymous memory that this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Peak(threading.Thread):
    """Watches the private memory from the side."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.value = private_bytes()

    def run(self) -> None:
        """Look every five milliseconds."""
        while True:
            self.value = max(self.value, private_bytes())
            time.sleep(0.005)


def passes(recipe: str) -> None:
    """Make all compiled passes over every tensor on one thread, and write nothing.

    MMER computes its merged task vector and every model's mask.
    """
    from dataclasses import replace

    from omnireg.checkpoints.shards import ByteReader
    from omnireg.engine.tensors import Job, Settings
    from omnireg.planning import plan
    from omnireg.plugins.host import PluginHost
    from omnireg.recipe import as_recipe
    from omnireg.strategies.kernels.fused import Mmer

    planned = plan(as_recipe(Path(recipe))[0], PluginHost(), engine="stream")
    settings = Settings(planned, ByteReader())
    for tensor in planned.merged.values():
        job = Job(tensor, settings)
        if isinstance(job.fused, Mmer):
            job.fused = replace(job.fused, side_outputs=True)
        job.survey()
        assert job.fused
        for chunk in range(job.chunks):
            job.fused.emit(job.chunk(chunk), job.found, chunk)


def main(engine: str, recipe: str, out: str, threads: str) -> None:
    """Import everything first, then time the engine alone."""
    peak = Peak()
    if engine == "mergekit-yaml":
        import yaml
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        config = MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text()))
        options = MergeOptions(write_model_card=False, quiet=True)
        shutil.rmtree(out, ignore_errors=True)
        peak.start()
        began = time.perf_counter()
        run_merge(config, out, options)
    else:
        import numpy as np

        import omnireg
        import omnireg.engine.stream
        from omnireg.plugins.host import PluginHost
        from omnireg.strategies.kernels.formats import all_finite

        plugins = PluginHost()
        plugins.methods()
        # the first compiled call imports most of numba
        all_finite(0, np.zeros(1, np.uint16).ctypes.data, 1)
        shutil.rmtree(out, ignore_errors=True)
        peak.start()
        began = time.perf_counter()
        if engine == "passes":
            passes(recipe)
        else:
            omnireg.merge(
                Path(recipe),
                out,
                engine=engine,
                threads=int(threads),
                record=False,
                plugins=plugins,
            )
    seconds = time.perf_counter() - began
    sys.stdout.write(json.dumps({"seconds": seconds, "private_bytes": peak.value}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
