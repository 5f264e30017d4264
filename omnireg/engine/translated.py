"""What mergekit and its methods raise for a user's mistake, as one line of ours."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from omnireg.errors import MergeError, OmniregError
from omnireg.planning import Plan


@contextmanager
def translated(plan: Plan, tensor: str | None = None) -> Iterator[None]:
    """Turn what mergekit or a method raises into one line of ours.

    What a ValueError or a RuntimeError says is enough; of any other error its kind is told as well.
    """
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(level, logging.ERROR))
    try:
        with redirect_stdout(sys.stderr):
            yield
    except OmniregError:
        raise
    except Exception as exc:
        message = " ".join(str(exc).split())
        if "No space left" in message:
            raise MergeError(
                f"the disk is full ({message}); free some space and run again"
            ) from exc
        said = message.removeprefix(f"{plan.recipe.merge_method}: ")
        if not said or not isinstance(exc, ValueError | RuntimeError):
            said = f"{type(exc).__name__}: {said}" if said else type(exc).__name__
        where = f", in tensor {tensor}" if tensor else ""
        raise MergeError(f"{plan.recipe.merge_method}: {said}{where}") from exc
    finally:
        logging.getLogger().setLevel(level)
