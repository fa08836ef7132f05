"""The arrays of an uncompressed `.npz` file, row by row: read by position, never loaded whole and never mapped."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

__all__ = ["Member", "NpzReader"]

# Of a zip file: what a member's local header begins with, its size, and where in it the lengths of the name and of the
# extra field stand (PKWARE, APPNOTE.TXT, 4.3.7). The central directory has another extra field, so it cannot tell.
_SIGNATURE, _LOCAL_SIZE, _LENGTHS = b"PK\x03\x04", 30, struct.Struct("<26xHH")


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

    Attributes:
        path: the file.
        members: the arrays in it by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, compressed or no `.npz` file, or an array in it has no numbers of
            this machine, row after row. Objects are refused, not unpickled.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        with open(self.path, "rb") as file:
            self._identity = _identity(file.fileno())
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
                    self.members = {info.filename.removesuffix(".npy"): _member(file, info) for info in infos}
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

    def array(self, name: str) -> np.ndarray:
        """Return a whole array, its CRC verified.

        Raises:
            KeyError: if there is none.
            ValueError: if it is damaged.
        """
        if name not in self.members:
            raise KeyError(f"{name} is not in the file")
        with self.opened() as handle, os.fdopen(handle, "rb", closefd=False) as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    return npy.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
            except Exception as error:
                raise ValueError(str(error) or type(error).__name__) from error


def _identity(handle: int) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    status = os.fstat(handle)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _member(file: IO[bytes], info: zipfile.ZipInfo) -> Member:
    """Find an array in the file."""
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            "it is compressed, and only uncompressed files can be read in parts: write one with "
            "Demonstrations.load(path).save(other_path, compressed=False)"
        )
    file.seek(info.header_offset)
    local = file.read(_LOCAL_SIZE)
    name_size, extra_size = _LENGTHS.unpack(local) if len(local) == _LOCAL_SIZE else (0, 0)
    # A comment, which numpy does not write, may be members that a damaged directory has swallowed.
    if not local.startswith(_SIGNATURE) or file.read(name_size) != name.encode() or info.comment:
        raise ValueError(f"{name} is damaged: its header is another one")
    start = info.header_offset + _LOCAL_SIZE + name_size + extra_size
    file.seek(start)
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"{name} is of version {version} of the .npy format")
    shape, by_columns, dtype = read_header(file)
    offset = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, which are never unpickled")
    if by_columns and len(shape) > 1 or not dtype.isnative:
        raise ValueError(f"{name} is stored by columns or in another byte order")
    if offset - start + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{name} is damaged: its size is not that of {shape} {dtype}")
    file.seek(start)
    return Member(shape, dtype, offset, info.CRC, zlib.crc32(file.read(offset - start)))
