"""What a method sees of the task it learns (see `promptcl.TaskView`), and of a past one when its learner is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.methods._base import Batch, Method, Stage
from promptcl.runtime import processes
from promptcl.runtime.seeding import task_generator
from promptcl.training.batches import Batches
from promptcl.training.exchange import joined
from promptcl.training.loop import allowed


@dataclass
class PastTask:
    """What `Method.grow` may see of a task, while it is learned and whenever the learner is loaded."""

    seed: int
    number: int
    new_classes: int
    count: int
    """Number of its images, those held out counted."""
    boundaries: bool = True
    """False in a stream that never says where a task ends."""
    asks: str = "this method"
    """Who is named where this is asked for all the same."""
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Make the random generator of the task."""
        self.generator = task_generator(self.seed, self.number, "task")

    @property
    def index(self) -> int:
        """Number of the task. Raises UserError in a stream without boundaries."""
        if not self.boundaries:
            raise UserError(
                f"{self.asks} with these options needs to know where tasks end, which scenario=gaussian and "
                "scenario=blurry never say; choose another method, such as ridge, ncm or l2p with method.diversify=none"
            )
        return self.number


@dataclass
class PresentTask(PastTask):
    """The task that is being learned."""

    new: ImageSet = field(kw_only=True)
    held_out: ImageSet = field(kw_only=True)
    remembered: ImageSet | None = field(kw_only=True)
    """Images of the memory."""
    offered: bool = field(kw_only=True)
    """Whether images of this task were offered to the memory before it is learned."""
    method: Method = field(kw_only=True)
    source: Batches = field(kw_only=True)
    labels_of: Callable[[ImageSet], Tensor] = field(kw_only=True)
    kept_of: Callable[[ImageSet], Mapping[str, Tensor]] = field(kw_only=True)
    """What the memory keeps beside images, a row each."""
    offer: Callable[[], ImageSet | None] = field(kw_only=True)
    """Offers `new` to the memory, and gives all that it holds then."""
    memory_is_lost: bool = field(kw_only=True)
    """Whether images were to be kept, and those of earlier tasks are not here."""
    allowed_K: Tensor | None = None
    """Classes of the task, True; None where nothing is masked. Known once the method has grown."""
    warnings: list[str] = field(default_factory=list)
    memory_was_read: bool = False
    """Whether the method has asked for images of the memory, and there were some."""
    given: dict[str, Tensor] = field(default_factory=dict)
    """What the method has the memory keep beside images of `new`, a row each."""
    _open: bool = False

    @property
    def memory(self) -> ImageSet | None:
        """Images kept for rehearsal; None where there are none."""
        if self.memory_is_lost:
            raise UserError(
                "the memory replays earlier images, which are not in the store: give them to Learner.remember, "
                "write memory.per_class=0 memory.total=0, or begin with memory.store=true"
            )
        self.memory_was_read |= self.remembered is not None
        return self.remembered

    def batches(self, images: ImageSet | None = None) -> Iterator[Batch]:
        """Evaluation batches of `images` (None: `new`), this process's share; sums are added up when the loop ends."""
        images = self.new if images is None else images
        if self._open:
            raise RuntimeError("a loop over task.batches() inside another one cannot add up sums; end the first one")
        self._open, labels_N = True, self.labels_of(images)
        allowed_K = allowed(self.allowed_K, labels_N)
        try:
            with joined(self.method, self.source.device):
                settings = (images, labels_N, self.method.together, self._generator)
                yield from self.source.evaluation(*settings, allowed_K=allowed_K, kept=self.kept_of(images))
        finally:
            self._open = False

    def _generator(self, purpose: str) -> torch.Generator:
        return task_generator(self.seed, self.number, purpose)

    def collect(self, function: Callable[[Batch], Tensor], images: ImageSet | None = None) -> Tensor:
        """Rows [N, X] that `function` gives for all of `images`, in their order, the same in every process; float32."""
        images = self.new if images is None else images
        parts = [function(batch).float() for batch in self.batches(images)]
        mine = self.source.mine(images, self.method.together)
        width = max(processes.everyones(parts[0].shape[1] if parts else 0))
        return processes.gather(parts or [torch.empty(0, width)], mine, (len(images), width), self.source.device)

    def queries(self, images: ImageSet | None = None) -> Tensor:
        """Queries [N, D] of all of `images`, in their order, the same in every process."""
        return self.source.queries.whole(self.new if images is None else images)

    def remember(self) -> ImageSet | None:
        """Let the memory take its share of `new` now; all that it holds then, None where it holds none."""
        if self.memory is None or not self.offered:  # a memory that is lost is refused here
            self.offered, self.remembered = True, self.offer()
        return self.memory

    def keep(self, name: str, rows_NX: Tensor) -> None:
        """Have the memory keep a row of `rows_NX` beside each of those images of `new` that it keeps."""
        self.given[name] = rows_NX.detach().float().cpu()

    def with_given(self, images: ImageSet, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept beside `images`: what `keep` was given for those of `new`, else what is in `rows`."""
        found = {name: values.detach().float().cpu() for name, values in rows.items()}
        place = {self.new.digest(i): i for i in range(len(self.new))} if self.given else {}
        for name, rows_NX in self.given.items():
            padded = torch.cat([rows_NX, torch.full_like(rows_NX[:1], torch.nan)])  # -1: none of them
            own = padded[torch.tensor([place.get(images.digest(i), -1) for i in range(len(images))], dtype=torch.long)]
            found[name] = torch.where(own.isnan(), found[name], own) if name in found else own
        return found

    def look_at(self, stage: Stage) -> None:
        """Warn, from the second task on, where the mask leaves one class in a loss and no image is replayed beside."""
        own = stage.images is None or stage.loss is not None or bool(stage.replay is not None and len(stage.replay))
        if own or not self.number or not self.boundaries or "!train.mask" in self.method.reads(self.method.options):
            return
        allowed_K = None if stage.images is None else allowed(self.allowed_K, self.labels_of(stage.images))
        if allowed_K is not None and int(allowed_K.sum()) == 1:
            self.warn(
                f"task {self.number + 1} has one class, which train.mask=true compares with no other, so cross-entropy "
                "trains nothing; learn several classes together, or take a method that adds up features, such as ridge"
            )

    def warn(self, sentence: str) -> None:
        """Tell the user something about this task."""
        self.warnings.append(sentence)
