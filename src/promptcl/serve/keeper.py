"""The learner of a server: loaded once, answered from as a whole, replaced by a newer one in a single step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from promptcl.errors import UserError
from promptcl.learner import Learner
from promptcl.serve.limits import Refused
from promptcl.serve.standing import Known
from promptcl.store import lock


class Keeper:
    """Keeps the newest learner of a store. Others may write to the store too; what they write is taken over."""

    def __init__(self, store: Path, settings: Sequence[str], trust: bool) -> None:
        """Load the learner in `store`; settings, trust: as of `Learner.load`, whose errors it raises."""
        self.store, self._settings, self._trust = store, list(settings), trust
        self._stamp = self._now()
        first = Learner.load(store, self._settings, trust=trust)
        self._backbone = first.backbone  # frozen, so all learners of this process share it
        self.known = Known.of(first)

    def load(self) -> Learner:
        """A copy of the learner as it is in the store now, which may be changed. Raises UserError."""
        return Learner.load(self.store, self._settings, self._backbone, self._trust)

    def lock(self) -> _Lock:
        """The lock of the store. Entering it raises Refused (409), which names who else writes to it."""
        return _Lock(self.store)

    def renew(self) -> Known:
        """Take over what is in the store now. Raises UserError, and keeps the learner that was there."""
        self._stamp = self._now()
        self.known = Known.of(self.load())
        return self.known

    def follow(self) -> None:
        """Take over what another process has written, if one has; what cannot be read is said on stderr, once."""
        if self._now() in (self._stamp, None):
            return
        try:
            self.renew()
        except Exception as error:  # the thread that asks has to live on, whatever others have written
            print(f"warning: {error}; the learner of before goes on answering", file=sys.stderr, flush=True)

    def _now(self) -> tuple[int, int, int] | None:
        """What changes whenever the store is written; None where it is gone."""
        try:
            found = (self.store / "learner.json").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


class _Lock:
    """`store.lock`, whose refusals are told from other errors."""

    def __init__(self, store: Path) -> None:
        self._lock = lock(store)

    def __enter__(self) -> None:
        try:
            self._lock.__enter__()
        except UserError as error:
            raise Refused(str(error), 409) from error

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)  # type: ignore[arg-type]
