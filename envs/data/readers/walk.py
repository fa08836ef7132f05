"""Looks at HDF5 and parquet files before anybody reads them: ``python walk.py KIND BYTES``, paths on standard input.

What reads these formats trusts what a file says of itself. A damaged tree of groups leads libhdf5 round in circles,
and damaged metadata end the process that pyarrow is in. So this is done in a process of its own, which can be stopped;
it imports nothing of the package. A line says that it is ready, and then one of JSON for each file how many bytes all
of its arrays have, or what is wrong with it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from typing import Any

__all__ = ["bytes_of_hdf5", "bytes_of_parquet", "found", "size_of"]

DEPTH = 64  # of groups in groups
SPARE = 2**20  # bytes of an array that may be missing in the file


def bytes_of_hdf5(path: str) -> int:
    """Look at every name in a file, without reading an array.

    Returns:
        How many bytes all arrays have together, those of several names as often.

    Raises:
        ValueError: if something in it lies in another file, it claims to hold what is not there, or has more names;
            h5py raises other kinds where it is damaged.
    """
    h5py = importlib.import_module("h5py")

    total, links, waiting = 0, os.stat(path).st_size // 8 + 64, [("", 0)]  # each name takes more than 8 bytes
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
    h5py = importlib.import_module("h5py")

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


def bytes_of_parquet(path: str) -> int:
    """How many bytes the columns of a file become, by its metadata: a few can say that a number comes a billion times.

    Raises:
        Exception: of several kinds where it is damaged.
    """
    parquet = importlib.import_module("pyarrow.parquet")

    total = 0
    with parquet.ParquetFile(path) as file:
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                total += max(8 * column.num_values, column.total_uncompressed_size)
    return total


def main() -> None:
    """Print what is in the files, a line each."""
    size_of_file = {"hdf5": bytes_of_hdf5, "parquet": bytes_of_parquet}[sys.argv[1]]
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    except (ImportError, ValueError, OSError):  # where memory cannot be limited
        pass
    importlib.import_module({"hdf5": "h5py", "parquet": "pyarrow.parquet"}[sys.argv[1]])
    print("ready", flush=True)
    for path in json.load(sys.stdin):
        print(json.dumps(found(size_of_file, path)), flush=True)


def found(size_of_file: Any, path: str) -> int | str:
    """How many bytes a file has, or what is wrong with it."""
    try:
        size: int = size_of_file(path)
        return size
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
