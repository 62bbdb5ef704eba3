"""Answers: one thread asks the learner, about the images of all requests that wait at that moment as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from promptcl.data import ImageSet, concat
from promptcl.learner.records import UNKNOWN, Prediction
from promptcl.serve.keeper import Keeper
from promptcl.serve.limits import Limits, Refused

_WAIT = 0.004  # seconds that a batch waits for requests whose images are being decoded


@dataclass
class Question:
    """Images of one request, which decode."""

    images: ImageSet
    top: int
    threshold: float | None
    answers: Future[tuple[list[Prediction], str]] = field(default_factory=Future)
    """The answers, and the version of the learner that gave all of them."""


class Asker:
    """The thread that asks the learner."""

    def __init__(self, keeper: Keeper, limits: Limits) -> None:
        """Start it."""
        self._keeper, self._limits = keeper, limits
        self._queue: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # images
        self.coming = 0
        """Requests whose images are being decoded, for which a batch waits a moment."""
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> None:
        """Have a question answered. Raises Refused (429) where too many images wait already."""
        with self._lock:
            if self._waiting + len(question.images) > self._limits.waiting_images:
                raise Refused("too many images wait for an answer; ask again in a moment", 429)
            self._waiting += len(question.images)
        self._queue.put(question)

    def close(self) -> None:
        """Answer what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = self._together(first)
            self._answer(group)
            with self._lock:
                self._waiting -= sum(len(question.images) for question in group)
            if last:
                return

    def _together(self, first: Question) -> tuple[list[Question], bool]:
        """The questions that wait, up to a batch of images; and whether the thread is to end after them."""
        group, count = [first], len(first.images)
        until = time.monotonic() + _WAIT
        while count < self._keeper.known.learner.config.eval.batch_size:
            try:
                left = max(0.0, until - time.monotonic()) if self.coming else 0.0
                question = self._queue.get(timeout=left) if left else self._queue.get_nowait()
            except queue.Empty:
                break
            if question is None:
                return group, True
            group.append(question)
            count += len(question.images)
        return group, False

    def _answer(self, group: Sequence[Question]) -> None:
        """Answer the questions whose senders still wait."""
        self._found([question for question in group if question.answers.set_running_or_notify_cancel()])

    def _found(self, group: Sequence[Question]) -> None:
        known = self._keeper.known
        if len(group) > 1 and known.learner.method.together > 1:  # images of a batch depend on each other there
            for question in group:
                self._found([question])
            return
        try:
            if not known.learner.classes:
                raise Refused("this learner knows no class yet; let it learn images first", 409)
            images = concat([question.images for question in group])
            found = iter(known.learner.predict(images, max(question.top for question in group)))
        except BaseException as error:
            if len(group) > 1 and not isinstance(error, Refused):
                for question in group:  # so that no request fails for another one's images
                    self._found([question])
                return
            for question in group:
                question.answers.set_exception(error)
            return
        for question in group:
            answers = [_said(next(found), question) for _ in range(len(question.images))]
            question.answers.set_result((answers, known.version))


def _said(answer: Prediction, question: Question) -> Prediction:
    """The answer as it was asked for: so many classes, and `unknown` by the threshold of the request."""
    label = answer.label
    if question.threshold is not None:
        label = answer.top[0][0] if answer.probability >= question.threshold else UNKNOWN
    return answer._replace(label=label, top=answer.top[: question.top])
