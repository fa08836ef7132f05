"""What every test starts from."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_pyro() -> Iterator[None]:
    """An empty parameter store, seeded random numbers, and validation on; the defaults back afterwards."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision by default, for tests against exact values."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root, which is also the folder of the package."""
    return ROOT


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_row(row: dict[str, Any]) -> None:
    """A row of results: one number, and everything that says which number it is."""
    assert row.keys() == {"method", "task", "setting", "seed", "metric", "value", "seconds"}, row
    assert all(isinstance(row[key], str) and row[key] for key in ("method", "task", "metric")), row
    assert isinstance(row["setting"], dict), row
    assert row["seed"] is None or type(row["seed"]) is int, row
    assert _is_number(row["value"]), row
    assert row["seconds"] is None or (_is_number(row["seconds"]) and row["seconds"] >= 0), row


def _check_results(results: dict[str, Any]) -> None:
    """A file of results: its rows, no two of them for the same number, and what made them."""
    assert results.keys() == {"name", "command", "revision", "machine", "versions", "rows"}
    assert isinstance(results["name"], str) and results["name"]
    assert all(results[key] for key in ("command", "revision", "machine"))
    assert results["versions"] and all(isinstance(version, str) for version in results["versions"].values())
    assert results["rows"]
    seen = set()
    for row in results["rows"]:
        _check_row(row)
        key = json.dumps([row[name] for name in ("method", "task", "setting", "seed", "metric")], sort_keys=True)
        assert key not in seen, f"two rows for {key}"
        seen.add(key)


@pytest.fixture(scope="session")
def check_row() -> Callable[[dict[str, Any]], None]:
    """Asserts that one row of results has the form that all rows have."""
    return _check_row


@pytest.fixture(scope="session")
def check_results() -> Callable[[dict[str, Any]], None]:
    """Asserts that a whole file of results has the form that all have."""
    return _check_results
