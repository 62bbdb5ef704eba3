"""Settings of the streams that have no task boundaries. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from promptcl.config.section import Section, Unread


class GaussianConfig(Section):
    """The Gaussian schedule of `scenario: gaussian` (L2P release, spec of arXiv 2105.13327)."""

    micro_tasks: int = Field(default=200, gt=0)
    steps: int = Field(default=5, gt=0)
    """Batches of a micro-task; its images are seen train.epochs times, in other batches each time."""
    sigma: float = Field(default=50.0, gt=0)
    """Standard deviation of a class around its peak, in batches."""
    evaluate_every: int = Field(default=10, gt=0)
    """Micro-tasks between two evaluations on the whole test set."""
    release_schedule: bool = False
    """What the release's shipped file does: steps = -1, so a five times wider schedule, and micro-tasks that train on
    ALL images of their classes; `steps` is then not read."""

    def unread(self) -> dict[str, Unread]:
        """The steps, where the release's stand for them."""
        return {"steps": Unread("release_schedule=true", "release_schedule=false")} if self.release_schedule else {}


class BlurryConfig(Section):
    """The tasks of `scenario: blurry`, which run into one another (arXiv 2308.09303, 2110.10031)."""

    disjoint: float = Field(default=0.5, ge=0, le=1)
    """Share of the classes that are disjoint, each in a single task; the others are blurry. 1: the classes come task by
    task, only that nothing says where one ends."""
    blur: float = Field(default=0.1, ge=0, le=1)
    """Share of the images of blurry classes that are taken out of their tasks and dealt out again at random."""
    stochastic: bool = True
    """Numbers of classes, and of images dealt out, differ at random from task to task (Si-Blurry); `false`: they are as
    equal as can be (i-Blurry)."""
    steps: int = Field(default=1, gt=0)
    """Batches of a micro-task, which is what is learned at a time, in train.epochs passes."""
    evaluate_every: int = Field(default=10, gt=0)
    """Micro-tasks between two evaluations on the whole test set."""

    def unread(self) -> dict[str, Unread]:
        """The share dealt out, where no class is blurry."""
        return {"blur": Unread("disjoint=1.0", "disjoint=0.5")} if self.disjoint == 1 else {}
