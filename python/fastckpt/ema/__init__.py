"""Exponential moving averages of a model's weights, kept beside it while it trains.

The arithmetic is torch's: `torch.optim.swa_utils.get_ema_multi_avg_fn`, one fused call for all tensors of a
device and dtype. `AveragedModel` around it is not used, because what a checkpoint needs is what it does not
do: it keeps its averages in the model's own dtype (bfloat16 loses every update at a decay of 0.9999), pairs
parameters by position and stops at the shorter list, averages integer buffers, and has no way to put the
averages into the model that trains and take them out again.
"""

from .ema_model import EMAModel

__all__ = ["EMAModel"]
