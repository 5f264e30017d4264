"""The client of the Hub, and what its failures are called.

Messages are made of our own words and of status codes, never of what a request held: a token cannot
get into them.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from omnireg.boundary.files import reason
from omnireg.errors import OmniregError, PublishError, to_type
from omnireg.version import __version__

TIMEOUT_VARIABLE = "OMNIREG_HUB_TIMEOUT"
#: what this machine says of its files and disks, not of the network
_OF_FILES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
LOG_IN = "log in with hf auth login, or set HF_TOKEN to a token that may write"
_TIMEOUT = 60.0


def timeout() -> float:
    """Return after how many seconds of silence the Hub is given up: ``$OMNIREG_HUB_TIMEOUT``.

    Raises:
        PublishError: the variable holds no number.
    """
    said = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = float(said) if said else _TIMEOUT
    except ValueError as exc:
        raise PublishError(f"{TIMEOUT_VARIABLE} is {said!r}; give seconds, such as 60") from exc
    return seconds if seconds > 0 else _TIMEOUT


def client() -> Any:
    """Return the client; requests that get no answer for long are given up."""
    seconds = timeout()

    def factory() -> httpx2.Client:
        found = huggingface_hub.utils._http.default_client_factory()
        found.timeout = httpx2.Timeout(seconds)
        return found

    huggingface_hub.set_client_factory(factory)
    return huggingface_hub.HfApi(library_name="omnireg", library_version=__version__)


class Unreadable(PublishError):
    """There is no such repository, branch or commit, or none that this token may read."""


class Stale(PublishError):
    """Somebody committed to the repository since the plan was made."""


def is_name(repo: str) -> bool:
    """Whether a repository can be called so; old ones have no owner in their names."""
    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        return False
    return True


def check_name(repo: str) -> None:
    """Refuse what is no ORG/NAME, before anything else is asked.

    Raises:
        PublishError: says how to write it.
    """
    if "/" not in repo or not is_name(repo):
        raise _no_name(repo)


def _no_name(repo: str) -> PublishError:
    return PublishError(
        f"{repo!r} is no name of a repository; write ORG/NAME with letters, digits, - _ and ."
    )


@contextmanager
def translated(repo: str, doing: str) -> Iterator[None]:
    """Turn whatever the client raises into a :class:`PublishError` that says what to do."""
    try:
        yield
    except OmniregError:
        raise
    except errors.HFValidationError as exc:
        raise _no_name(repo) from exc
    except errors.LocalTokenNotFoundError as exc:
        raise _no_token() from exc
    except errors.RepositoryNotFoundError as exc:
        if not has_token():
            raise _no_token() from exc
        raise Unreadable(
            f"there is no repository {repo} on the Hub, or this token may not see it; check the"
            " spelling"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise Unreadable(f"{repo} has no such branch or commit; check the spelling") from exc
    except errors.HfHubHTTPError as exc:
        status = getattr(exc.response, "status_code", None)
        raise _refused(repo, doing, status) from exc
    except httpx2.TimeoutException as exc:
        raise PublishError(
            f"{doing} {repo}: the Hub did not answer for {timeout():g} s; try again later, or set"
            f" {TIMEOUT_VARIABLE}"
        ) from exc
    except (RecursionError, ValueError) as exc:
        raise PublishError(
            f"{doing} {repo}: what the Hub sent cannot be understood ({type(exc).__name__}); look"
            " at its files on the Hub, or try again later"
        ) from exc
    except (httpx2.HTTPError, OSError, RuntimeError) as exc:
        if isinstance(exc, OSError) and exc.errno in _OF_FILES:
            file = f"{exc.filename}: " if exc.filename else ""
            raise PublishError(f"{doing} {repo}: {file}{reason(exc)}; mend that here") from exc
        kept = ": what was uploaded is not sent twice" if doing.startswith("publish") else ""
        raise PublishError(
            f"{doing} {repo}: the connection to the Hub broke ({type(exc).__name__}); look at the"
            f" network and try again{kept}"
        ) from exc


def has_token() -> bool:
    """Whether somebody is logged in."""
    return huggingface_hub.get_token() is not None


def _no_token() -> PublishError:
    return PublishError(f"no token for the Hub; {LOG_IN}")


def _refused(repo: str, doing: str, status: int | None) -> PublishError:
    if status == 412:
        return Stale(
            f"somebody committed to {repo} meanwhile; look at the new plan:"
            f" {to_type('publish', 'NAME', repo, '--dry-run')}"
        )
    why = {
        401: "the token is not valid; log in again with hf auth login",
        403: "this token may not write there; ask its owners, or use a token with write access",
        404: "not found; check the spelling",
        429: "too many requests; wait a few minutes and try again",
    }.get(status or 0, "try again later" if (status or 500) >= 500 else "nothing was changed")
    kind = Unreadable if status in (401, 403, 404) else PublishError
    return kind(f"{doing} {repo}: the Hub answered {status or 'nothing'}: {why}")
