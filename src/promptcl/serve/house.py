"""What a running server holds: the learner, the thread that answers, the thread that changes, and its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from promptcl.config import DataConfig
from promptcl.data import ImageSet
from promptcl.data.checked import unreadable
from promptcl.learner.records import answer_row
from promptcl.serve.asking import Asker, Question
from promptcl.serve.jobs import Worker
from promptcl.serve.keeper import Keeper
from promptcl.serve.limits import Budget, Limits, Refused
from promptcl.serve.uploads import Upload, image_set

_DECODERS = 2  # images that are decoded at a time, each in at most 512 MiB


class House:
    """The parts of a server, which end together."""

    def __init__(
        self,
        store: Path,
        settings: Sequence[str] = (),
        trust: bool = False,
        read_only: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Load the learner in `store` and start the threads; settings, trust: as of `Learner.load`."""
        self.store, self.read_only, self.limits = store, read_only, limits or Limits()
        self.budget = Budget(self.limits.held_bytes)
        self.keeper = Keeper(store, settings, trust)
        self.asker = Asker(self.keeper, self.limits)
        self.worker = Worker(self.keeper, self.limits)
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode")

    def close(self) -> None:
        """Give up what is being learned, answer what waits, end all threads."""
        self.worker.close()
        self.asker.close()
        self._decoders.shutdown()

    async def answer(self, upload: Upload, top: int, threshold: float | None) -> dict[str, Any]:
        """The answers to the images of a request, as JSON; what does not decode has its error in its place.

        Raises Refused: none decodes, nothing was learned, too many wait.
        """
        images = image_set(upload.images)
        loop = asyncio.get_running_loop()
        self.asker.coming += 1
        try:
            bad = await loop.run_in_executor(self._decoders, self._unreadable, images, upload)
            good = [i for i in range(len(images)) if i not in bad]
            if not good:
                raise Refused(bad[0])
            question = Question(images.select(good), top, threshold)
            self.asker.ask(question)
        finally:
            self.asker.coming -= 1
        try:
            found, version = await asyncio.wait_for(asyncio.wrap_future(question.answers), self.limits.answer_seconds)
        except asyncio.TimeoutError:
            raise Refused("no answer in time; ask again in a moment, or with fewer images", 429) from None
        by_row = dict(zip(good, found, strict=True))
        rows = [answer_row(images.name(i), by_row.get(i), bad.get(i)) for i in range(len(images))]
        return {"version": version, "answers": rows}

    def _unreadable(self, images: ImageSet, upload: Upload) -> dict[int, str]:
        """Decode the images, whose pixels count as held; the number of each that does not decode, and why."""
        self.keeper.known.learner.as_learned(images)

        def held(count: int) -> None:
            self.budget.take(count)
            upload.size += count

        bad = unreadable(images, DataConfig(workers=0), held)
        return {i: " ".join(sentence.split()) for i, sentence in bad.items()}
