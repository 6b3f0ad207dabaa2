"""Exponential moving averages of a model's weights.

The arithmetic is torch's: `torch.optim.swa_utils.get_ema_multi_avg_fn`, one fused call for all tensors of a
device and dtype. torch's `AveragedModel` around it is not used, for four reasons. It keeps averages in the
model's own dtype, and bfloat16 loses every update at a decay of 0.9999. It pairs parameters by position and
stops at the shorter list. It averages integer buffers. And it cannot put the averages into the model that
trains and take them out again.
"""

from .ema_model import EMAModel

__all__ = ["EMAModel"]
