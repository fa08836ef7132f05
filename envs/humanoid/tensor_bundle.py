"""Checkpoints of TensorFlow (V2 "tensor bundles"), read with numpy alone.

A bundle is `NAME.index`, a sorted string table, and `NAME.data-SSSSS-of-NNNNN`, its shards of raw numbers. The table
ends in a footer of 48 bytes with the places of two index blocks and a magic number; the second index block lists the
data blocks. A block is a list of entries (bytes shared with the key before, bytes of its own, bytes of the value, all
as varints), an array of restart points, a byte for the kind of compression, and a CRC. The value of a tensor's name is
a protocol buffer: type, shape, shard, offset, size and the masked CRC-32C of its bytes. The empty name stands for the
header, which says how many shards there are. The format is that of LevelDB's tables and of TensorFlow's
`tensor_bundle.proto`.
"""

from __future__ import annotations

import glob
import math
import operator
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..._limits import Budget

__all__ = ["read_tensor_bundle"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 17: "<u2", 19: "<f2"}
_NO_COMPRESSION, _SNAPPY = 0, 1
# Numbers of the fields of BundleHeaderProto, BundleEntryProto and TensorShapeProto.
_HEADER_SHARDS, _HEADER_BIG_ENDIAN = 1, 2
_TYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = 1, 2, 3, 4, 5, 6, 7


def read_tensor_bundle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint, its CRCs verified.

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
        data = index.read_bytes()
        values = dict(_table(data, Budget(len(data), 4)))
        count, entries = _parsed(values)
    except (IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is damaged or truncated") from error
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from error

    shards: dict[int, bytes] = {}
    tensors: dict[str, np.ndarray] = {}
    budget = Budget(sum(file.stat().st_size for file in prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*")), 4)
    for name, entry in entries.items():
        file = prefix.with_name(f"{prefix.name}.data-{entry.shard:05d}-of-{count:05d}")
        if entry.shard not in shards:
            if not file.is_file():
                raise FileNotFoundError(f"no whole checkpoint at {prefix}: {file.name} is missing")
            shards[entry.shard] = file.read_bytes()
        data = shards[entry.shard][entry.offset : entry.offset + entry.size]
        if len(data) < entry.size:
            raise ValueError(
                f"{file} is truncated: {name} ends at byte {entry.offset + entry.size} of {len(shards[entry.shard])}"
            )
        try:
            budget.take(entry.size)
            tensors[name] = np.frombuffer(data, entry.dtype).reshape(entry.shape).copy()
        except ValueError as error:
            raise ValueError(f"{file}: {name} cannot be read: {error}") from error
        if entry.crc != _masked_crc(data):
            raise ValueError(f"{file}: {name} is damaged: its CRC is another")
    return tensors


class _Entry(NamedTuple):
    """Where a tensor is, and what."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def _parsed(values: dict[bytes, bytes]) -> tuple[int, dict[str, _Entry]]:
    """How many shards there are, and the tensors' entries by name."""
    header = _message(values[b""])
    if header.get(_HEADER_BIG_ENDIAN, 0):
        raise ValueError("its numbers are big-endian, which is not supported")
    entries = {}
    for key, value in values.items():
        if not key:
            continue
        name, fields = key.decode(), _message(value)
        if _SLICES in fields:
            raise ValueError(f"{name} is split into slices, which is not supported")
        if (kind := fields.get(_TYPE)) not in _TYPES:
            raise ValueError(f"{name} has TensorFlow's type {kind}, which is not supported")
        dtype, shape = np.dtype(_TYPES[kind]), _shape(fields.get(_SHAPE, b""))
        shard, offset, size = (operator.index(fields.get(field, 0)) for field in (_SHARD, _OFFSET, _SIZE))
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has shape {list(shape)} of {dtype}, but {size} bytes")
        crc = struct.unpack("<I", fields[_CRC])[0]
        entries[name] = _Entry(dtype, shape, shard, offset, size, crc)
    return operator.index(header.get(_HEADER_SHARDS, 1)), entries


def _table(data: bytes, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
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
        budget.take(size)  # many may stand in one place
        yield from _block(data, start, size)


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; a key is stored as what differs from the one before."""
    if (kind := data[start + size]) != _NO_COMPRESSION:
        what = "snappy" if kind == _SNAPPY else f"kind {kind}"
        raise ValueError(f"a block is compressed ({what}), which is not supported: save the checkpoint uncompressed")
    block = data[start : start + size]
    if struct.unpack("<I", data[start + size + 1 : start + size + 5])[0] != _masked_crc(data[start : start + size + 1]):
        raise ValueError("a block is damaged: its CRC is another")
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


def _masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), turned and shifted as LevelDB stores it.

    The register is linear in what it held before and in the bytes. So stretches of `_STRETCH` bytes of much data are
    gone through side by side, each from 0, and then joined.
    """
    crc, whole = 0xFFFFFFFF, len(data) - len(data) % _STRETCH if len(data) > 2**13 else 0
    stretches = np.zeros(whole // _STRETCH, np.uint32)
    for column in np.frombuffer(data, np.uint8, whole).reshape(-1, _STRETCH).T:
        stretches = _next(stretches, column)
    for stretch in stretches.tolist():
        crc = stretch ^ _FIRST[crc & 255] ^ _SECOND[crc >> 8 & 255] ^ _THIRD[crc >> 16 & 255] ^ _FOURTH[crc >> 24]
    for byte in data[whole:]:
        crc = _CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_row(byte) for byte in range(256)]
_CRC_ARRAY = np.array(_CRC_TABLE, np.uint32)
_STRETCH = 256


def _next(crc: np.ndarray, byte: Any) -> np.ndarray:
    """Registers after a byte more each."""
    found: np.ndarray = _CRC_ARRAY[(crc ^ byte) & 255] ^ (crc >> np.uint32(8))
    return found


def _after() -> list[list[int]]:
    """What a register is after `_STRETCH` zeros, by each of its four bytes before."""
    registers = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(_STRETCH):
        registers = _next(registers, np.uint32(0))
    found: list[list[int]] = registers.tolist()
    return found


_FIRST, _SECOND, _THIRD, _FOURTH = _after()


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
