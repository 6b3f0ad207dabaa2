"""What a process knows of the other ranks, through torch.distributed where that is initialised."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import torch
from torch import distributed


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if not _is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def any_rank(flag: bool) -> bool:
    """Whether any rank says yes. With several ranks a collective: all have to ask."""
    if not _is_initialized() or distributed.get_world_size() == 1:
        return flag
    # NCCL moves nothing that is not on a GPU.
    uses_cuda = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if uses_cuda else "cpu"
    votes = torch.tensor([int(flag)], device=device)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return bool(votes.item())


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
