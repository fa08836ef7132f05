"""HDF5 files: read by name, and nothing outside of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...._limits import Budget
from .files import PATH, begins_like, existing, imported, naming, verify_apart
from .walk import size_of

__all__ = ["Hdf5", "open_hdf5", "verify_hdf5"]


class Hdf5:
    """An open HDF5 file.

    Args:
        file: of h5py.
        budget: what may be read of it.
    """

    def __init__(self, file: Any, budget: Budget) -> None:
        self._file, self._budget = file, budget

    def names(self, group: str = "/") -> list[str]:
        """What is in a group; nothing where there is no such group."""
        found = self._file.get(group)
        return [*found] if hasattr(found, "keys") else []

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Read an array of numbers or flags, or some of its rows.

        Raises:
            ValueError: if there is none of this name, or it cannot be in the file.
        """
        array = self._array(name)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} must be numbers, got {array.dtype}")
        chunk = math.prod(array.chunks) if array.chunks else 0
        count = len(range(*rows.indices(len(array)))) * math.prod(array.shape[1:])
        self._budget.take(max(count, chunk) * array.dtype.itemsize)
        return array[rows]

    def texts(self, name: str) -> Iterator[str]:
        """Read an array of texts, one after the other."""
        array = self._array(name)
        for index in range(len(array)):
            self._budget.take(array.dtype.itemsize + 1)
            text = array[index]
            yield text.decode() if isinstance(text, bytes) else str(text)

    def _array(self, name: str) -> Any:
        group = name.rpartition("/")[0]
        if name not in self._file:
            raise ValueError(f"it has no array {name!r}: {group or 'the file'} holds {self.names(group or '/')}")
        array = self._file[name]
        if not getattr(array, "shape", None):
            raise ValueError(f"{name} is no array")
        size_of(array.id, name)
        return array


@contextmanager
def open_hdf5(path: PATH) -> Iterator[Hdf5]:
    """Open an HDF5 file for reading; what goes wrong in the block names it.

    Raises:
        ImportError: without h5py.
        FileNotFoundError: if there is none.
        ValueError: if it is truncated, damaged, another file, or has links to other files.
    """
    h5py = imported("h5py")
    path = existing(path)
    verify_hdf5(path)
    with naming(path), h5py.File(path, "r") as file:
        yield Hdf5(file, Budget(path.stat().st_size))


def verify_hdf5(path: Path) -> None:
    """Look through an HDF5 file that is about to be read, see `verify_apart`.

    Raises:
        ImportError: without h5py.
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or another file, an array lies in another file or is not there, or all of them
            cannot be in this one.
    """
    h5py = imported("h5py")
    path = existing(path)
    with naming(path):
        if not h5py.is_hdf5(path):
            raise ValueError(f"it is no HDF5 file{begins_like(path)}")
    verify_apart("hdf5", [path])
