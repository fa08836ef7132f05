"""TensorFlow's checkpoints, written by the format's rules."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10}
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def crc(data: bytes) -> int:
    """CRC-32C bit by bit, masked."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    register ^= 0xFFFFFFFF
    return ((register >> 15 | register << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A block whose keys share what they have in common with the one before."""
    body, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(last), len(key)) and last[shared] == key[shared]:
            shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    body += struct.pack("<II", 0, 1)
    return body + bytes([kind]) + struct.pack("<I", crc(body + bytes([kind])))


def write(
    prefix: Path,
    tensors: dict[str, np.ndarray],
    *,
    shards: int = 1,
    header: bytes = b"",
    kind: int = 0,
    per_block: int = 2,
    more: bytes = b"",
    types: dict[str, int] | None = None,
) -> None:
    """Write a bundle, the tensors in turn to each shard."""
    data = [b""] * shards
    entries = [(b"", number(1, shards) + header)]
    for index, name in enumerate(sorted(tensors)):
        tensor, shard = tensors[name], index % shards
        shape = b"".join(text(2, number(1, size)) for size in tensor.shape)
        entry = number(1, (types or {}).get(name, TYPES[tensor.dtype.name])) + text(2, shape)
        entry += (
            number(3, shard)
            + number(4, len(data[shard]))
            + number(5, tensor.nbytes)
            + varint(6 << 3 | 5)
            + struct.pack("<I", crc(tensor.tobytes()))
        )
        entries.append((name.encode(), entry + more))
        data[shard] += tensor.tobytes()
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    table, index_entries = b"", []
    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        written = block(part, kind)
        index_entries.append((part[-1][0], varint(len(table)) + varint(len(written) - 5)))
        table += written
    handles = b""
    for content in (block([]), block(index_entries)):
        handles += varint(len(table)) + varint(len(content) - 5)
        table += content
    prefix.with_name(prefix.name + ".index").write_bytes(table + handles.ljust(40, b"\0") + MAGIC)
