"""From images to gradients: batches, the one training loop, the rehearsal memory."""

from promptcl.training.batches import Batches
from promptcl.training.loop import fit
from promptcl.training.memory import Memory, Replay
from promptcl.training.optim import make_optimizer

__all__ = ["Batches", "Memory", "Replay", "fit", "make_optimizer"]
