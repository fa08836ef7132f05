"""What a file may ask for, whoever made it: memory by its size, nesting by a number.

A few bytes can claim a terabyte, name a thing a thousand times or hold lists within lists within lists. So what a file
says of its own sizes is checked before it is believed.

What is packed may become `TIMES` its bytes: DEFLATE makes up to 1,032 of one, and honest data sets of zeros and ones
come near. Nothing is taken for it before it is there. Everything else may take four times the file's size. A small file
may take `ROOM` bytes in either case.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["DEPTH", "ROOM", "TIMES", "Allocations", "Budget", "available_memory", "json_of", "verify_parts"]

#: Bytes that every file may take, however small it is.
ROOM = 2**26
#: What a byte of a compressed file may become.
TIMES = 1100
#: How deep a list may lie in lists.
DEPTH = 64


def available_memory() -> int | None:
    """Return how many bytes of memory can be taken without ending a process, or None where the system does not say.

    That is what Linux calls available, within the limit of a container; elsewhere all the memory there is.
    """
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found += [1024 * int(lines[name].split()[0]) for name in ("MemAvailable",) if name in lines]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups 2 and 1
        with suppress(OSError, ValueError):
            found.append(int((Path("/sys/fs/cgroup") / limit).read_text()))
    return min(found, default=None)


class Budget:
    """How many bytes may be made of a file.

    Args:
        size: of the file.
        times: what one of its bytes may become.
    """

    def __init__(self, size: int, times: int = TIMES) -> None:
        self._left = max(ROOM, times * size)

    def take(self, count: int) -> None:
        """Make sure, before they are made, that so many bytes may be, beside those before.

        Raises:
            ValueError: if not.
        """
        self.verify(count)
        self._left -= count

    def verify(self, count: int) -> None:
        """Make sure that so many bytes may be made for a while.

        Raises:
            ValueError: if not.
        """
        if count > self._left:
            raise ValueError("it claims to hold more than a file of its size may")


def verify_parts(content: Any, size: int) -> None:
    """Refuse content that is nested too deep, has more parts than its file has bytes, or tensors beyond their numbers.

    Args:
        content: dictionaries, lists and tuples of others.
        size: of the file, in bytes.

    Raises:
        ValueError: saying what is wrong.
    """
    expanded, left, waiting = Budget(size, 4), max(size, 2**16), [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if isinstance(value, dict | list | tuple):
            left -= 1 + len(parts)
            if depth == DEPTH or left < 0:
                raise ValueError(f"it is nested deeper than {DEPTH}" if left >= 0 else "it repeats itself too often")
            waiting += [(part, depth + 1) for part in parts]
        elif isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            expanded.take(value.nbytes)


def json_of(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: if it is none, or nested too deep.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEPTH}") from error
    verify_parts(content, len(text))
    return content


_LEAST = 2**12  # bytes that a tensor counts as at least, so that not too many are made


class Allocations(TorchFunctionMode):
    """A context in which tensors cannot be made beyond a budget: the one that would exceed it is not made.

    Args:
        budget: what may be made.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = [*_parts((args, *kwargs.values()))]
        numbers = [one.numel() for one in parts if isinstance(one, Tensor)]
        if not numbers:
            if size := _size_of(func, args, kwargs | {"device": "meta"}):
                self._budget.take(max(size, _LEAST))
        # No tensor has more numbers than those that it is made of, times each other and what whole numbers say.
        elif 8 * math.prod(numbers + [abs(one) or 1 for one in parts if type(one) is int]) > ROOM:
            self._budget.verify(_size_of(func, args, kwargs))
        return func(*args, **kwargs)


def _parts(arguments: Any) -> Iterator[Any]:
    """What lists and tuples hold."""
    for one in arguments:
        if isinstance(one, list | tuple):
            yield from _parts(one)
        else:
            yield one


def _size_of(func: Any, args: Any, kwargs: Any) -> int:
    """How many bytes an operation makes, found without making them; 0 where that cannot be."""
    named = {name: value for name, value in kwargs.items() if name != "generator"}
    given, named = tree_map_only(Tensor, _without_numbers, (args, named))
    try:
        return sum(one.nbytes for one in _parts([func(*given, **named)]) if isinstance(one, Tensor))
    except Exception:
        return 0


def _without_numbers(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
