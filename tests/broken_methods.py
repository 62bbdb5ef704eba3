"""Methods that are broken on purpose, each in one way that check_method has to find (ours)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods import linear, ncm
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class DrawsGlobally(linear.Model):
    """Draws from the random state that everybody shares."""

    def grow(self, task: TaskView) -> None:
        super().grow(task)
        torch.rand(1)


class Unseeded(linear.Model):
    """Has randomness of its own, which no seed decides."""

    def grow(self, task: TaskView) -> None:
        super().grow(task)
        generator = torch.Generator()
        generator.seed()
        self.head.weight_KD.data += 0.01 * torch.rand(self.head.weight_KD.shape, generator=generator)


class Unmoved(linear.Model):
    """Answers with the opposite of what it has learned."""

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK = super().logits(backbone, batch)
        return logits_BK if self.training else -logits_BK


class ChangesViT(linear.Model):
    """Moves the ViT that all learners share."""

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from super().learn(backbone, task)
        backbone.vit.norm.bias.add_(0.001)


class ChangesImages(linear.Model):
    """Writes into the images that it was lent."""

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from super().learn(backbone, task)
        task.new.image(0)[0].fill_(7)


class Forgets(linear.Model):
    """Keeps a part of what it has learned outside of its state."""

    centre_D = torch.zeros(())

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from super().learn(backbone, task)
        self.centre_D = task.queries().mean(0)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK: Tensor = self.head(batch.query_BD - self.centre_D)
        return logits_BK


_CENTRES: dict[int, Tensor] = {}


class KeepsInModule(linear.Model):
    """Keeps a part of what it has learned in its module, which a new process has not."""

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from super().learn(backbone, task)
        _CENTRES[backbone.width] = torch.ones(backbone.width)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        centre_D = torch.zeros(()) if self.training else _CENTRES.get(backbone.width, torch.zeros(()))
        logits_BK: Tensor = self.head(batch.query_BD + centre_D)
        return logits_BK


class GrowsInLearn(linear.Model):
    """Makes room where it learns, which is not repeated when a learner is loaded."""

    def grow(self, task: TaskView) -> None:
        pass

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        super().grow(task)
        yield from super().learn(backbone, task)


class Peeks(linear.Model):
    """Looks at the other images of a batch."""

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK: Tensor = self.head(batch.query_BD - 0.5 * batch.query_BD.mean(0))
        return logits_BK


class CountsCalls(linear.Model):
    """Learns by how often it was called since its process began."""

    calls = 0

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        self.calls += 1
        return masked_cross_entropy(self.logits(backbone, batch) * self.calls, batch)


class AddsAlone(ncm.Model):
    """Adds up images without a Sum, so that each of several processes has its own."""

    means_KD: Tensor

    def __init__(self, options: ncm.NCMOptions, backbone: Backbone, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        del self.means
        self.register_buffer("means_KD", torch.zeros(0, backbone.width))

    def grow_head(self, classes: int) -> None:
        self.means_KD = torch.cat([self.means_KD, self.means_KD.new_zeros(classes, self.means_KD.shape[1])])

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        self.means_KD.index_add_(0, labels_B, features_BF)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        return batch.query_BD @ F.normalize(self.means_KD).T


class AnswersAsOnce(linear.Model):
    """Keeps a feature of its images although what it was computed of is trained."""

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        moved_BD = batch.once("moved", lambda: batch.query_BD + self.head.weight_KD[:2].mean(0))
        logits_BK: Tensor = self.head(moved_BD)
        return logits_BK


class ForgetsNothing(linear.Model):
    """Says that it can take images away, and only drops the last rows."""

    @property
    def mendable(self) -> bool:
        return True

    def mend(self, labels_N: Tensor, classes: int) -> None:
        self.head.weight_KD = torch.nn.Parameter(self.head.weight_KD.detach()[:classes])
        self.head.bias_K = torch.nn.Parameter(self.head.bias_K.detach()[:classes])


class SaysLittleOptions(linear.LinearOptions):
    """One option that says what it does, one that does not."""

    documented: int = 1
    """A number."""
    silent: int = 1


class SaysLittle(linear.Model):
    """Has an option that nobody can understand."""

    Options = SaysLittleOptions
