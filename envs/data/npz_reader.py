"""The arrays of `.npz` files: whole ones, or of an uncompressed file row by row, read by position and never mapped."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ..._limits import Budget

__all__ = ["Member", "NpzReader", "read_array"]


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> np.ndarray:
    """Read one array of an `.npz` file. Its size is that of its bytes, whatever it says; nothing is unpickled.

    Args:
        archive: the file.
        info: the array in it.
        budget: of the bytes that may be read.

    Raises:
        ValueError: if it is damaged, holds objects, or is larger than it may be; zipfile raises other kinds, by where
            the damage is.
    """
    content = bytearray()
    with archive.open(info) as member:
        while piece := member.read(2**20):  # a piece at a time, so that no memory is taken for what is only claimed
            budget.take(len(piece))
            content += piece
    if len(content) != info.file_size:
        raise ValueError(f"{info.filename} claims to hold more than it does, {info.file_size} bytes for {len(content)}")
    shape, by_columns, dtype, start = _header(io.BytesIO(content[: 2**16]), info, len(content))
    return np.ndarray(shape, dtype, content, start, order="F" if by_columns else "C")


class Member(NamedTuple):
    """Where one array stands in the file.

    Attributes:
        shape: of the array.
        dtype: of its elements.
        offset: of its first element in the file, in bytes.
        crc: CRC-32 that the writer noted, of header and elements.
        header_crc: CRC-32 of the bytes of the header, from which that of the elements goes on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    crc: int
    header_crc: int


class NpzReader:
    """An uncompressed `.npz` file. It is open only while it is read, by any number of threads or processes.

    Args:
        path: the file.
        whole: names of arrays to read at once, their CRC verified.

    Attributes:
        path: the file.
        members: all arrays in it by name.
        arrays: those of ``whole`` that there are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, compressed or no `.npz` file, or an array in it has no numbers of
            this machine, row after row. Objects are refused, not unpickled.
    """

    def __init__(self, path: str | os.PathLike[str], whole: Collection[str] = ()) -> None:
        self.path = Path(path).absolute()
        self.members: dict[str, Member] = {}
        self.arrays: dict[str, np.ndarray] = {}
        with open(self.path, "rb") as file:
            self._identity = _identity(file.fileno())
            try:
                with zipfile.ZipFile(file) as archive:
                    budget = Budget(self._identity[2])
                    for info in archive.infolist():
                        name = info.filename.removesuffix(".npy")
                        self.members[name] = _member(file, archive, info)
                        if name in whole:
                            self.arrays[name] = read_array(archive, info, budget)
            except Exception as error:  # on damaged files zipfile raises a dozen kinds, and numpy some more
                raise ValueError(str(error) or type(error).__name__) from error

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file for :meth:`read`.

        Raises:
            OSError: if it cannot be opened.
            ValueError: if it is not the file any more that it was.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            if _identity(handle) != self._identity:
                raise ValueError(f"{self.path} has changed since it was opened")
            yield handle
        finally:
            os.close(handle)

    def read(self, handle: int, offset: int, into: memoryview) -> None:
        """Fill ``into``, bytes, with what stands in the file from ``offset`` on.

        Raises:
            ValueError: if the file ends before.
        """
        done = os.preadv(handle, [into], offset)
        while done < len(into):  # a read returns at most 2 GiB, and may return less
            count = os.preadv(handle, [into[done:]], offset + done)
            if count == 0:
                raise ValueError(f"{self.path} was truncated: it ends at byte {offset + done}")
            done += count


def _identity(handle: int) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    status = os.fstat(handle)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _member(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    """Find an array in the file."""
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            "it is compressed, and only uncompressed files can be read in parts: write one with "
            "Demonstrations.load(path).save(other_path, compressed=False)"
        )
    if info.compress_size != info.file_size:
        raise ValueError(f"{name} is damaged: it has two sizes, {info.compress_size} and {info.file_size} bytes")
    with archive.open(info) as member:
        start = file.tell()  # zipfile has read the member's header from there, and nothing of what follows it
        shape, by_columns, dtype, size = _header(member, info, info.file_size)
    if by_columns and len(shape) > 1 or not dtype.isnative:
        raise ValueError(f"{name} is stored by columns or in another byte order")
    return Member(shape, dtype, start + size, info.CRC, zlib.crc32(os.pread(file.fileno(), size, start)))


def _header(member: IO[bytes], info: zipfile.ZipInfo, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """What an array says of itself: its shape, whether it is stored by columns, its type and where its numbers begin.

    Raises:
        ValueError: if it is not an array of numbers or texts of this size, in bytes.
    """
    name = info.filename.removesuffix(".npy")
    if info.comment:  # which numpy does not write: it may be members that a damaged directory has swallowed
        raise ValueError(f"{name} is damaged: it has a comment")
    version = npy.read_magic(member)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"{name} is of version {version} of the .npy format")
    shape, by_columns, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never unpickled: save arrays of numbers")
    if min(shape, default=0) < 0 or member.tell() + math.prod(shape) * dtype.itemsize != size or not dtype.itemsize:
        raise ValueError(f"{name} is damaged: its size is not that of {shape} {dtype}")
    return shape, by_columns, dtype, member.tell()
