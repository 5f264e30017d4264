"""Answers that take seconds of imports to get, remembered for as long as the question is the same.

The question names everything that the answer depends on, versions included.
"""

import json
from contextlib import suppress
from hashlib import sha256
from typing import Any

from omnireg.checkpoints.digests import cache_folder


class Question:
    """A question by its content; equal content has the same answer."""

    def __init__(self, *content: Any) -> None:
        """Ask about ``content``, which must be plain data."""
        text = json.dumps(content, sort_keys=True)
        self._file = cache_folder() / "answers" / sha256(text.encode()).hexdigest()

    # A cache that cannot be used costs time, never a result: its errors are not the user's.

    def recall(self) -> Any:
        """Return the answer, None if there is none yet."""
        with suppress(OSError, ValueError):
            return json.loads(self._file.read_text(encoding="utf-8"))
        return None

    def remember(self, answer: Any) -> None:
        """Keep the answer."""
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(answer), encoding="utf-8")
