"""The built-in merge strategies, registered lazily through the public hook."""

from omnireg.hookspecs import RegisterStrategy, hookimpl


@hookimpl
def omnireg_register_strategies(register: RegisterStrategy) -> None:
    """Register average, delta_weighted, omni_ties and mmer."""
    register("omnireg.strategies.average:METHOD", name="average")
    register("omnireg.strategies.delta_weighted:METHOD", name="delta_weighted")
    register("omnireg.strategies.ties:METHOD", name="omni_ties")
    register("omnireg.strategies.mmer:METHOD", name="mmer")
