"""Whether a device and a folder can be used, asked before work starts."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["verify_device", "verify_folder"]


def verify_device(device: str | torch.device | None) -> None:
    """Make sure that tensors can be kept on a device; None is torch's default one.

    Raises:
        ValueError: if they cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from error


def verify_folder(path: str | os.PathLike[str] | None) -> None:
    """Make sure that a path is a folder, or can be made one; None is.

    Raises:
        ValueError: if it, or what it would be in, is a file.
    """
    for folder in () if path is None else (Path(path), *Path(path).parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{path}: {folder} is a file, not a folder")
