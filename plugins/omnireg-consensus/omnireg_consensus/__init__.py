"""TALL-masks and consensus merging as the merge method ``consensus``, imported when it is used."""

from omnireg import hookimpl
from omnireg.hookspecs import RegisterStrategy


@hookimpl
def omnireg_register_strategies(register: RegisterStrategy) -> None:
    """Register the method by name, so that listing strategies imports nothing."""
    register("omnireg_consensus.method:METHOD", name="consensus")
