"""How good a checkpoint is: the built-in evaluators, and results that other programs wrote."""

from omnireg.hookspecs import RegisterEvaluator, hookimpl


@hookimpl
def omnireg_register_evaluators(register: RegisterEvaluator) -> None:
    """Register the built-in evaluators."""
    register("omnireg.evaluation.harness:EVALUATOR", name="lm-eval")
    register("omnireg.evaluation.generative:EVALUATOR", name="generative")
