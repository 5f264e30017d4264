"""Run one merge in this process and print its engine time and peak private memory as JSON."""

import json
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
        peak.start()
        began = time.perf_counter()
        run_merge(config, out, options)
    else:
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401

        import omnireg
        import omnireg.engine.stream
        from omnireg.host import PluginHost

        host = PluginHost()
        host.methods()
        peak.start()
        began = time.perf_counter()
        omnireg.merge(
            Path(recipe), out, engine=engine, threads=int(threads), record=False, host=host
        )
    seconds = time.perf_counter() - began
    sys.stdout.write(json.dumps({"seconds": seconds, "private_bytes": peak.value}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
