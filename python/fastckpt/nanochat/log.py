"""The log of `nanochat.checkpoint_manager`, under the name by which its users filter."""

import logging
import os

# The logger is named after the module that these functions stand in for.
logger = logging.getLogger("nanochat.checkpoint_manager")


def log0(message: str) -> None:
    """Log at INFO where the environment's RANK is 0 or absent (torchrun sets it)."""
    if int(os.environ.get("RANK", "0")) == 0:
        logger.info(message)
