"""The training loop that pruning and distillation share, and training states that survive a kill."""

from tersor.training.loop import Companion, Loss, MakeOptimizer, Trained, train
from tersor.training.modes import unfrozen
from tersor.training.optimizers import adamw
from tersor.training.rates import RATES
from tersor.training.state import read_state, write_state

__all__ = [
    "RATES",
    "Companion",
    "Loss",
    "MakeOptimizer",
    "Trained",
    "adamw",
    "read_state",
    "train",
    "unfrozen",
    "write_state",
]
