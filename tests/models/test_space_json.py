"""Spaces as text: there and back, and a clear error for what is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from pyrocontrol.models.space_json import space_from_json, space_to_json

THIRD = np.float32(1) / 3
SPACES = [
    spaces.Box(-1, 1, (4,), np.float32),
    spaces.Box(np.array([-THIRD, -np.inf], np.float32), np.array([THIRD, np.inf], np.float32)),
    spaces.Box(-0.1, 0.1, (2, 2), np.float64),
    spaces.Box(0, 255, (3, 3, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Box(-np.inf, np.inf, (), np.float16),
    spaces.Box(0, 1, (0,), np.float32),
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1, dtype=np.int32),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, 1]], dtype=np.int16),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
    spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Tuple((spaces.MultiBinary(1), spaces.Dict())))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_there_and_back(space: spaces.Space[Any]) -> None:
    text = space_to_json(space)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    again = space_from_json(text)
    assert again == space and type(again) is type(space) and again.dtype == space.dtype
    assert space_to_json(again) == text
    if isinstance(space, spaces.Box) and isinstance(again, spaces.Box):
        assert (again.low == space.low).all() and (again.high == space.high).all()
        assert (again.bounded_below == space.bounded_below).all()


def test_the_order_of_parts_is_kept() -> None:
    again = space_from_json(space_to_json(spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(2))])))
    assert isinstance(again, spaces.Dict) and list(again.spaces) == ["b", "a"]


def test_equal_bounds_take_no_room() -> None:
    assert len(space_to_json(spaces.Box(0, 255, (84, 84, 4), np.uint8))) < 100


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Dict([(1, spaces.Discrete(2))])], ids=str)
def test_spaces_that_cannot_be_described(space: spaces.Space[Any]) -> None:
    with pytest.raises(TypeError, match="cannot be described|must be strings"):
        space_to_json(space)


NO_SPACES = [
    "",
    "3",
    "[]",
    "{}",
    '{"type": "Text"}',
    '{"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"}',
    '{"type": "Discrete", "n": 2, "start": 0, "dtype": "object"}',
    '{"type": "Box", "shape": [2], "dtype": "float32", "low": [0, 1, 2], "high": 1}',
    '{"type": "Box", "shape": [2], "dtype": "float32", "low": 2, "high": 1}',
    '{"type": "Box", "shape": [2], "dtype": "no such type", "low": 0, "high": 1}',
    '{"type": "Dict", "spaces": [["a"]]}',
    # Larger than any file in which a few bytes say so, or nested deeper than anybody reads.
    '{"type": "Box", "shape": [1000000, 1000000], "dtype": "float32", "low": 0, "high": 1}',
    '{"type": "MultiBinary", "n": 1000000000000}',
    '{"type": "MultiDiscrete", "nvec": [1000000000, -1000000000], "start": [0, 0], "dtype": "int64"}',
    '{"type": "Tuple", "spaces": ' * 100 + "[]" + "}" * 100,
    "[" * 100_000,
]


def test_texts_that_describe_no_space() -> None:
    for text in NO_SPACES:
        with pytest.raises(ValueError, match="no description of a space"):
            space_from_json(text)
            pytest.fail(f"taken: {text}")
