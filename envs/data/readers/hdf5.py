"""HDF5 files: read by name, and nothing outside of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...._limits import Budget
from .files import PATH, begins_like, existing, imported, naming
from .hdf5_walk import size_of, walked

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
    """Look through an HDF5 file that is about to be read, in a process of its own: see `hdf5_walk`.

    It takes a third of a second, and at most `_SECONDS` and some more for a large file.

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
        size = path.stat().st_size
        found = _walked(path, size)
        if isinstance(found, str):
            raise ValueError(found)
        Budget(size).take(found)


_SECONDS, _BYTES_A_SECOND = 6, 5e6  # which a walk may take: names are a small part of most files


def _walked(path: Path, size: int) -> int | str:
    """How many bytes all arrays of a file have, or what is wrong with it."""
    links = size // 8 + 64  # each name takes more bytes
    if not sys.executable:  # a Python within another program
        return walked(str(path), links)
    script = str(Path(__file__).with_name("hdf5_walk.py"))
    command = [sys.executable, "-P", script, str(path.absolute()), str(links), str(2**32 + 4 * size)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS + size / _BYTES_A_SECOND
        )
    except subprocess.TimeoutExpired:
        return "it is damaged: its groups lead round in circles"
    if done.returncode:
        return "it is damaged: libhdf5 ends the process that looks at it"
    found: int | str = json.loads(done.stdout.splitlines()[-1])
    return found
