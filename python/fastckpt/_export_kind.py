"""What kind of export it is follows from two names. Imports no torch: the command line asks before it starts."""

from __future__ import annotations

import os

_PT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_SAFETENSORS_SUFFIXES = (".safetensors", ".safetensors.index.json")


def export_kind(path: str, output: str) -> str:
    """Return what kind of export this is: "inference", "safetensors" or "import".

    Raises:
        ValueError: The names do not go together.
    """
    is_import = path.endswith(_SAFETENSORS_SUFFIXES) or os.path.isdir(path)
    if output.endswith(_PT_SUFFIXES):
        return "import" if is_import else "inference"
    is_directory = os.path.isdir(output) or not os.path.splitext(os.path.basename(output))[1]
    if not (output.endswith(".safetensors") or is_directory):
        raise ValueError(
            f"cannot export to {output!r}: expected a .pt file, a .safetensors file or a directory"
        )
    if is_import:
        raise ValueError(
            f"{path} is safetensors already: export it to a .pt file (in a directory, "
            f"{os.path.join(output, 'model.pt')} for instance)"
        )
    return "safetensors"
