"""What mergekit and its methods raise for a user's mistake, as one line of ours."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from omnireg.errors import MergeError, OmniregError
from omnireg.plugins.isolation import contained, said


@contextmanager
def translated(method: str, tensor: str | None = None) -> Iterator[None]:
    """Run a merge method's code contained; of what it raises make one line of ours.

    What a ValueError or a RuntimeError says is enough; of any other error its kind is told as well.
    An exit is an error like any other; only an interrupt is none.
    """
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(level, logging.ERROR))
    try:
        with contained():
            yield
    except (OmniregError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        message = said(exc)
        if "No space left" in message:
            raise MergeError(
                f"the disk is full ({message}); free some space and run again"
            ) from exc
        text = message.removeprefix(f"{method}: ")
        if not text or not isinstance(exc, ValueError | RuntimeError):
            text = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
        where = f", in tensor {tensor}" if tensor else ""
        raise MergeError(f"{method}: {text}{where}") from exc
    finally:
        logging.getLogger().setLevel(level)
