"""What a training script needs around its checkpoints: when to save, what to keep, how to resume.

`CheckpointManager` writes one file for each save, an ordinary .pt that plain ``torch.load`` opens, and
decides which older ones are deleted. `resume_training` restores all of it.
"""

from .config import CheckpointConfig
from .manager import CheckpointManager
from .preemption import Preemption
from .resume import Resumed, resume_training

__all__ = ["CheckpointConfig", "CheckpointManager", "Preemption", "Resumed", "resume_training"]
