"""What mergekit and its methods raise for a user's mistake, as one line of ours."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from omnireg.errors import MergeError, OmniregError
from omnireg.planning import Plan


@contextmanager
def translated(plan: Plan) -> Iterator[None]:
    """Turn what mergekit raises for a user's mistake into one line of ours."""
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
        raise MergeError(f"{plan.recipe.merge_method}: {said or type(exc).__name__}") from exc
    finally:
        logging.getLogger().setLevel(level)
