"""The random generators that a model, a policy or an environment may draw from, kept and put back together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["keep_random_state", "mixed", "random_state", "random_state_aside", "set_random_state"]


def mixed(*numbers: int) -> int:
    """Return a seed made of several numbers, another one for each order of others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def keep_random_state() -> Callable[[], None]:
    """Keep the state of every random generator, in a few microseconds; return what puts them all back to it."""
    here, gpus = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy, python = np.random.get_state(), random.getstate()

    def put_back() -> None:
        torch.set_rng_state(here)
        for device, state in enumerate(gpus):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(numpy)
        random.setstate(python)

    return put_back


def random_state() -> dict[str, Any]:
    """State of every random generator that a step may draw from: torch (CPU, CUDA), numpy and Python.

    Returns:
        A dictionary of tensors and numbers alone, so that it loads under ``weights_only=True``.
    """
    _, key, position, has_gauss, gauss = np.random.get_state()  # the legacy tuple: MT19937
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (torch.from_numpy(np.asarray(key, np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": (version, torch.tensor(words), gauss_next),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every random generator back to a state of :func:`random_state`.

    CUDA states are restored as far as this machine has devices for them.
    """
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)
    key, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))


@contextmanager
def random_state_aside() -> Iterator[None]:
    """Put every random generator back, at the end of the block, to where it was at its beginning."""
    put_back = keep_random_state()
    try:
        yield
    finally:
        put_back()
