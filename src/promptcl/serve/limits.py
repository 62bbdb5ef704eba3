"""What a server refuses: how much it takes at once, and the error that says so with an HTTP status. No torch here."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from promptcl.errors import UserError


class Refused(UserError):
    """A request that is not answered: a sentence for its sender, and the HTTP status (4xx) that goes with it."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        """Refuse with `sentence`."""
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The most that a server takes at once; pixels are limited by the decoder, 100 million an image."""

    image_bytes: int = 64 << 20
    """Bytes of one image file."""
    ask_bytes: int = 64 << 20
    """Bytes of a request with images to answer."""
    ask_images: int = 256
    """Images of a request to answer."""
    learn_bytes: int = 512 << 20
    """Bytes of a request with images to learn."""
    learn_images: int = 10_000
    """Images of a request to learn."""
    json_bytes: int = 64 << 10
    """Bytes of any other request."""
    held_bytes: int = 1 << 30
    """Bytes of all requests that are being read, answered or learned."""
    waiting_images: int = 2_000
    """Images that wait for an answer."""
    waiting_jobs: int = 8
    """Changes that wait for the one that runs."""
    kept_jobs: int = 200
    """Finished changes that can still be asked for."""
    begin_seconds: float = 30
    """Time in which the line and the headers of a request have to come."""
    idle_seconds: float = 30
    """Time in which the next part of its body has to come."""
    body_seconds: float = 600
    """Time in which all of its body has to come."""
    answer_seconds: float = 120
    """Time in which images are answered."""
    wait_seconds: float = 30
    """The longest that a request waits for a job."""


class Budget:
    """Bytes that all requests hold together, so that many of them cannot fill the memory."""

    def __init__(self, most: int) -> None:
        """Hold at most so many bytes."""
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count bytes that came in. Raises Refused (429) where they are too many."""
        with self._lock:
            if self.held + count > self.most:
                raise Refused("too much is being sent to this server at once; try again in a moment", 429)
            self.held += count

    def give(self, count: int) -> None:
        """Count bytes that are no longer held."""
        with self._lock:
            self.held -= count
