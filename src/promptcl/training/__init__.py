"""Training: batches of images, the one training loop, and the rehearsal memory."""

from promptcl.training.batches import Batches
from promptcl.training.loop import Progress, Silent, Trainer
from promptcl.training.memory import Memory, Replay
from promptcl.training.task import PastTask, PresentTask
from promptcl.training.weak import Weak

__all__ = ["Batches", "Memory", "PastTask", "PresentTask", "Progress", "Replay", "Silent", "Trainer", "Weak"]
