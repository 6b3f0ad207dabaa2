"""The elements of tensors as bytes and as numbers, for every dtype that has an arithmetic."""

# mypy: untyped-calls-exclude=torch

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

COMPONENTS = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
    **({torch.bcomplex32: torch.bfloat16} if hasattr(torch, "bcomplex32") else {}),
}
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
# torch rounds other numbers to its powers of two in a way of its own: see the test of them.
EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
)
# torch 2.6 does not know it.
POWERS_OF_TWO = (torch.float8_e8m0fnu,) if hasattr(torch, "float8_e8m0fnu") else ()
FLOATING = (torch.float64, torch.float32, *SIXTEEN_BITS, *EIGHT_BITS, *COMPONENTS)
INTEGER = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)

Numbers = npt.NDArray[np.float64]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the elements of a tensor, in their order."""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format)
    nbytes = flat.numel() * flat.itemsize
    data = torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage(), 0, (nbytes,), (1,))
    return data.numpy().tobytes()


def of_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    numel = len(data) // dtype.itemsize
    storage = torch.UntypedStorage(len(data))
    if data:
        torch.empty(0, dtype=torch.uint8).set_(storage).copy_(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        )
    return torch.empty(0, dtype=dtype).set_(storage, 0, (numel,), (1,))


def numbers(data: bytes, dtype: torch.dtype) -> Numbers:
    """Return components in float64, as torch converts them."""
    tensor = of_bytes(data, dtype)
    if dtype in EIGHT_BITS or dtype in POWERS_OF_TWO:
        tensor = tensor.float()  # exact
    return tensor.double().numpy()


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same tensor in another place of another storage."""
    if layout == "transposed":
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()
    if layout == "inside":
        around = torch.zeros(tensor.numel() + 7, dtype=tensor.dtype)
        around[3 : 3 + tensor.numel()] = tensor.reshape(-1)
        return around[3 : 3 + tensor.numel()].view(tensor.shape)
    if layout == "stepped":
        around = torch.zeros((*tensor.shape, 2), dtype=tensor.dtype)
        around[..., 1] = tensor
        return around[..., 1]
    return tensor.clone()
