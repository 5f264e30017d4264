"""Every error a user can cause, as one tree.

    OmniregError
    ├── ConfigError       a recipe or an option that cannot be right
    ├── PluginError       a plugin that cannot be loaded or used
    ├── CheckpointError   a checkpoint that is missing, unreadable or not what it claims
    │   └── InputChanged  a file that changed while it was read
    ├── PlanError         checkpoints that do not fit together
    ├── MergeError        a merge that started and could not finish
    ├── RegistryError     a record that cannot be read or written
    ├── EvaluationError   a score that could not be measured
    └── PublishError      the Hub said no

A message says what is wrong, where, and what to do next. The command line prints it as one
``error:`` line and exits with 1; anything outside this tree is a defect and keeps its traceback.
"""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches


class OmniregError(Exception):
    """Base of every error that omnireg raises on purpose."""


class ConfigError(OmniregError):
    """The recipe or an option is wrong."""


class PluginError(OmniregError):
    """A plugin could not be loaded, or two of them claim one name."""


class CheckpointError(OmniregError):
    """A checkpoint is missing, unreadable or damaged."""


class InputChanged(CheckpointError):
    """A file is no longer what it was when it was first looked at."""


class PlanError(OmniregError):
    """The inputs do not fit together."""


class MergeError(OmniregError):
    """A merge started and could not be completed."""


class RegistryError(OmniregError):
    """The registry refused, is locked, or does not know the name."""


class EvaluationError(OmniregError):
    """A model could not be scored."""


class PublishError(OmniregError):
    """Publishing to or pulling from the Hub failed."""


def to_type(*words: object) -> str:
    """Return an ``omnireg`` command as it can be typed, quoted where a shell needs it."""
    return shlex.join(["omnireg", *map(str, words)])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
