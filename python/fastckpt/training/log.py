"""The log of the training toolkit."""

import logging

logger = logging.getLogger("fastckpt.training")
