"""Whether a device, a folder and numbers can be used, asked before work starts."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._files import locked, writing

__all__ = [
    "claim_folder",
    "verify_device",
    "verify_finite",
    "verify_folder",
    "verify_least",
    "verify_options",
    "verify_positive",
    "verify_seed",
]


def verify_device(device: str | torch.device | None) -> None:
    """Make sure that tensors can be kept on a device; None is torch's default one.

    Raises:
        ValueError: if they cannot.
    """
    try:
        torch.zeros(1, device=device).tolist()  # the device "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from error


def verify_folder(path: str | os.PathLike[str] | None) -> None:
    """Make sure that a path is a folder, or can be made one; None is.

    Raises:
        ValueError: if it, or what it would be in, is a file.
    """
    for folder in () if path is None else (Path(path), *Path(path).parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{path}: {folder} is a file, not a folder")


def verify_least(least: int, **arguments: int) -> None:
    """Make sure that arguments are whole numbers, ``least`` or more.

    Raises:
        TypeError: if one is not whole.
        ValueError: if one is less.
    """
    for name, value in arguments.items():
        try:
            operator.index(value)
        except TypeError as error:
            raise TypeError(f"{name} must be a whole number, not {value}") from error
        if isinstance(value, bool):
            raise TypeError(f"{name} must be a whole number, not {value}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def verify_finite(least: float = -math.inf, /, **numbers: Any) -> None:
    """Refuse numbers that are not finite, or less than ``least``, by their names."""
    for name, value in numbers.items():
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def verify_positive(**numbers: Any) -> None:
    """Refuse numbers that are not positive and finite, by their names."""
    for name, value in numbers.items():
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, not {value}")


def verify_seed(seed: int) -> None:
    """Make sure that all random generators take a seed.

    Raises:
        TypeError: if it is not whole.
        ValueError: if it is negative, or has more than 32 bits.
    """
    verify_least(0, seed=seed)
    if seed >= 2**32:
        raise ValueError(f"seed must be less than 2**32, not {seed}")


def verify_options(options: Mapping[str, Any] | None, *known: str) -> dict[str, Any]:
    """Return the options of an environment's reset.

    Raises:
        ValueError: if one is unknown.
    """
    given = dict(options or {})
    if unknown := [*given.keys() - set(known)]:
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"unknown options {names}; known are {', '.join(known) or 'none'}")
    return given


@contextmanager
def claim_folder(path: str | os.PathLike[str], settings: dict[str, Any]) -> Iterator[None]:
    """Make a folder a run's own: write ``path/settings.json``, or make sure that what is there says the same.

    Nobody else can claim it while the block runs. If the block fails before it has written anything there, the folder
    is as it was before.

    Args:
        path: of the folder, made if missing.
        settings: what the run was asked for, as far as a run that goes on has to be asked for the same; what JSON can
            hold. Names that are only here or only in the file do not count.

    Raises:
        ValueError: if the folder is another run's, of this moment or before, or cannot be written; what is in it
            stands.
    """
    verify_folder(path)
    folder, file = Path(path), Path(path) / "settings.json"
    wanted = json.loads(json.dumps(settings))
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".claim"))
            if new := not file.exists():
                with writing(file) as stream:
                    stream.write(json.dumps(wanted, indent=1).encode())
            there = json.loads(file.read_text())
            if not isinstance(there, dict):
                raise ValueError("no settings of a run")
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
        if unlike := [f"{n} {there[n]}, not {given}" for n, given in wanted.items() if there.get(n, given) != given]:
            raise ValueError(f"{path} holds another run, with {'; '.join(unlike)}: choose another folder")
        try:
            yield
        except BaseException:
            if new and {*folder.iterdir()} <= {file, folder / ".claim"}:
                file.unlink()
            raise
