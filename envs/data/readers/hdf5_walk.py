"""Walks through an HDF5 file before anybody reads it: ``python hdf5_walk.py FILE LINKS BYTES`` prints what it found.

libhdf5 trusts the trees of groups and chunks in a file. A damaged one can lead it round in circles, or end its process.
So this is done in a process of its own, which can be stopped; it imports nothing of the package.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

__all__ = ["walked"]

DEPTH = 64  # of groups in groups
SPARE = 2**20  # bytes of an array that may be missing in the file


def walked(path: str, links: int) -> int:
    """Look at every name in a file, without reading an array.

    Args:
        path: of the file.
        links: how many names there may be.

    Returns:
        How many bytes all arrays have together, those of several names as often.

    Raises:
        ValueError: if something in it lies in another file, it claims to hold what is not there, or has more names;
            h5py raises other kinds where it is damaged.
    """
    import h5py

    total, waiting = 0, [("", 0)]
    with h5py.File(path, "r") as file:
        while waiting:
            place, depth = waiting.pop()
            group = file[place or "/"]
            for name in group:
                links -= 1
                if links < 0 or depth == DEPTH:
                    raise ValueError("it has more groups in groups than a file of its size may")
                name, kind = f"{place}/{name}".lstrip("/"), group.get(name, getlink=True)
                if not isinstance(kind, h5py.HardLink | h5py.SoftLink):
                    raise ValueError(f"{name} is a link to another file, which is not followed")
                if isinstance(kind, h5py.SoftLink):
                    continue
                found = h5py.h5o.open(file.id, name.encode())
                if isinstance(found, h5py.h5g.GroupID):
                    waiting.append((name, depth + 1))
                elif isinstance(found, h5py.h5d.DatasetID):
                    total += size_of(found, name)
    return total


def size_of(array: Any, name: str) -> int:
    """How many bytes an array has, an ``h5py.h5d.DatasetID``.

    Raises:
        ValueError: if they lie in another file, or are not there.
    """
    import h5py

    layout = array.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{name} lies in another file, which is not read")
    size = math.prod(array.shape or ()) * array.dtype.itemsize
    there = array.get_storage_size()
    if layout.get_layout() == h5py.h5d.CHUNKED:
        there = array.get_num_chunks() * math.prod(layout.get_chunk()) * array.dtype.itemsize
    if size > there + SPARE:
        raise ValueError(f"{name} claims to hold more than it does, {size} bytes instead of {there}")
    return size


def main() -> None:
    """Print the bytes of all arrays of a file, or what is wrong with it."""
    path, links, most = sys.argv[1], *map(int, sys.argv[2:])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):  # where memory cannot be limited
        pass
    try:
        print(json.dumps(walked(path, links)))
    except Exception as error:
        print(json.dumps(" ".join(str(error).split()) or type(error).__name__))


if __name__ == "__main__":
    main()
