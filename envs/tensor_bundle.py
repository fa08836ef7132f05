"""Checkpoints of TensorFlow (V2 "tensor bundles"), read with numpy alone.

A bundle is `NAME.index`, a sorted string table, and `NAME.data-SSSSS-of-NNNNN`, its shards of raw numbers. The table
ends in a footer of 48 bytes with the places of two index blocks and a magic number; the second index block lists the
data blocks. A block is a list of entries (bytes shared with the key before, bytes of its own, bytes of the value, all as
varints), an array of restart points, a byte for the kind of compression, and a CRC. The value of a tensor's name is a
protocol buffer: type, shape, shard, offset, size and the masked CRC-32C of its bytes. The empty name stands for the
header, which says how many shards there are. The format is that of LevelDB's tables and of TensorFlow's
`tensor_bundle.proto`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_tensor_bundle"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 17: "<u2", 19: "<f2"}
_NO_COMPRESSION, _SNAPPY = 0, 1
# Numbers of the fields of BundleHeaderProto, BundleEntryProto and TensorShapeProto.
_HEADER_SHARDS, _HEADER_BIG_ENDIAN = 1, 2
_TYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = 1, 2, 3, 4, 5, 6, 7


def read_tensor_bundle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint.

    Args:
        path: the checkpoint's name as TensorFlow has it, without `.index` (which may be there).

    Returns:
        The tensors by name.

    Raises:
        FileNotFoundError: if the index or a shard is missing.
        ValueError: naming the file, if it is no such table, truncated, damaged or compressed, or a tensor has a type
            that is not supported or is split into slices.
    """
    prefix = Path(str(path).removesuffix(".index"))
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise FileNotFoundError(f"no checkpoint at {prefix}: {index.name} is missing")
    try:
        entries = dict(_table(index.read_bytes()))
        header = _message(entries.pop(b""))
        if header.get(_HEADER_BIG_ENDIAN, 0):
            raise ValueError("its numbers are big-endian")
        parsed = {name.decode(): _message(value) for name, value in entries.items()}
        shapes = {name: _shape(entry.get(_SHAPE, b"")) for name, entry in parsed.items()}
    except (IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is damaged or truncated") from error
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from error

    count = header.get(_HEADER_SHARDS, 1)
    shards: dict[int, bytes] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, entry in parsed.items():
        file = prefix.with_name(f"{prefix.name}.data-{entry.get(_SHARD, 0):05d}-of-{count:05d}")
        if (number := entry.get(_SHARD, 0)) not in shards:
            if not file.is_file():
                raise FileNotFoundError(f"no whole checkpoint at {prefix}: {file.name} is missing")
            shards[number] = file.read_bytes()
        if _SLICES in entry:
            raise ValueError(f"{index}: {name} is split into slices, which is not supported")
        if entry.get(_TYPE) not in _TYPES:
            raise ValueError(f"{index}: {name} has TensorFlow's type {entry.get(_TYPE)}, which is not supported")
        dtype = np.dtype(_TYPES[entry[_TYPE]])
        start, size, shape = entry.get(_OFFSET, 0), entry.get(_SIZE, 0), shapes[name]
        wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size != wanted and 0 not in shape and not (size == 0 and shape == ()):
            raise ValueError(f"{index}: {name} has shape {list(shape)} but {size} bytes")
        data = shards[number][start : start + size]
        if len(data) < size:
            raise ValueError(f"{file} is truncated: {name} ends at byte {start + size} of {len(shards[number])}")
        if size < wanted:  # an uninitialised scalar
            continue
        tensors[name] = np.frombuffer(data, dtype).reshape(shape).copy()
    return tensors


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a sorted string table, in order."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError(
            "no index of a checkpoint of TensorFlow, or a truncated one: no magic number stands at its end"
        )
    footer = data[-_FOOTER:]
    _, place = _handle(footer, 0)  # of the block of meta-data, which is empty
    (start, size), _ = _handle(footer, place)
    for _, value in _block(data, start, size):
        (start, size), _ = _handle(value, 0)
        yield from _block(data, start, size)


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; a key is stored as what differs from the one before."""
    if (kind := data[start + size]) != _NO_COMPRESSION:
        what = "snappy" if kind == _SNAPPY else f"kind {kind}"
        raise ValueError(f"a block is compressed ({what}), which is not supported: save the checkpoint uncompressed")
    block = data[start : start + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + own + length > end:
            raise IndexError
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Where a block starts and its bytes, and where the handle ends."""
    start, place = _varint(data, place)
    size, place = _varint(data, place)
    return (start, size), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError


def _message(data: bytes) -> dict[int, Any]:
    """The fields of a protocol buffer by number: integers and bytes; the last one where a number comes twice."""
    return dict(_fields(data))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError
        if place + size > len(data):
            raise IndexError
        yield tag >> 3, data[place : place + size]
        place += size


def _shape(data: bytes) -> tuple[int, ...]:
    """The sizes of a TensorShapeProto."""
    return tuple(_message(size).get(1, 0) for number, size in _fields(data) if number == 2)
