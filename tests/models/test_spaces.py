"""Spaces as arrays: there and back bit for bit, one element or a batch, and one clear error for what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from pyrocontrol.models.spaces import (
    SpaceError,
    action_size,
    as_action_space,
    check_action_space,
    decode_actions,
    encode_actions,
    flatten_observations,
    observation_dtype,
    observation_parts,
    observation_size,
    unflatten_observations,
)

NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (2, 3), np.uint8),
        "robot": spaces.Dict(gripper=spaces.MultiBinary(2), joints=spaces.Box(-1, 1, (3,), np.float32)),
        "room": spaces.Discrete(4, start=-1),
        "tools": spaces.Tuple((spaces.MultiDiscrete([2, 3], start=[1, 5]), spaces.Box(-np.inf, np.inf, ()))),
    }
)
OBSERVATIONS = [
    (spaces.Box(-1, 1, (4,), np.float32), 4),
    (spaces.Box(-1, 1, (2, 3), np.float64), 6),
    (spaces.Box(-np.inf, np.inf, (2,), np.float16), 2),
    (spaces.Box(-np.inf, np.inf, ()), 1),
    (spaces.Box(0, 1, (3,), np.bool_), 3),
    (spaces.Box(-(2**40), 2**40, (3,), np.int64), 3),
    (spaces.Discrete(5), 5),
    (spaces.Discrete(3, start=-2), 3),
    (spaces.MultiDiscrete([2, 3], start=[1, 5]), 5),
    (spaces.MultiDiscrete([[2, 3], [1, 4]]), 10),
    (spaces.MultiBinary((2, 2)), 4),
    (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,), np.float64))), 4),
    (NESTED, 6 + 2 + 3 + 4 + 5 + 1),
]
ACTIONS = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2], start=[0, 4]),
    spaces.Box(-2, 2, (3,), np.float32),
    spaces.Box(-2, 2, (2, 2), np.float64),
    spaces.Box(-2, 2, (), np.float32),
]


def equal(left: Any, right: Any) -> bool:
    """Equal to the last bit, in types and shapes too."""
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def row(batch: Any, index: int) -> Any:
    """One element of a batch."""
    if isinstance(batch, dict):
        return {key: row(value, index) for key, value in batch.items()}
    return tuple(row(value, index) for value in batch) if isinstance(batch, tuple) else batch[index]


@pytest.mark.parametrize(("space", "size"), OBSERVATIONS, ids=str)
def test_observations_there_and_back(space: spaces.Space[Any], size: int) -> None:
    assert observation_size(space) == size
    batched = batch_space(space, 7)
    batched.seed(3)
    batch = batched.sample()
    flat = flatten_observations(space, batch)
    assert flat.shape == (7, size) and flat.dtype == observation_dtype(space)
    back = unflatten_observations(space, flat)
    assert equal(back, batch)
    for index in (0, 6):
        one = row(batch, index)
        assert equal(flatten_observations(space, one), flat[index])
        assert equal(unflatten_observations(space, flat[index]), one)
        assert space.contains(unflatten_observations(space, flat[index]))
    assert equal(flatten_observations(space, unflatten_observations(space, flat[None])), flat[None])
    assert flatten_observations(space, row(batch, slice(0))).shape == (0, size)


def test_flattening_agrees_with_gymnasium() -> None:
    plain = [space for space, _ in OBSERVATIONS if not isinstance(space, spaces.Box) or space.shape]
    for space in plain:
        space.seed(1)
        one = space.sample()
        assert np.array_equal(flatten_observations(space, one), spaces.flatten(space, one))


def test_parts_have_names() -> None:
    parts = observation_parts(NESTED)
    assert list(parts) == ["camera", "robot.gripper", "robot.joints", "room", "tools.0", "tools.1"]
    assert parts["room"] == slice(11, 15) and parts["tools.1"] == slice(20, 21)
    assert observation_parts(spaces.Box(0, 1, (2, 2))) == {"observation": slice(0, 4)}
    assert list(observation_parts(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))))) == ["0", "1"]
    twice = spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(2))})
    with pytest.raises(TypeError, match=r"two parts of the observation space are called 'a\.b'"):
        observation_parts(twice)


def test_the_order_is_the_spaces_not_the_observations() -> None:
    space = spaces.Dict([("z", spaces.Box(0, 9, (1,))), ("a", spaces.Box(0, 9, (1,)))])
    given = {"a": np.float32([1]), "z": np.float32([2])}
    assert flatten_observations(space, given).tolist() == [2, 1]
    assert list(unflatten_observations(space, np.float32([2, 1]))) == ["z", "a"]


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(0, 1, (2,), np.float32), np.float32),
        (spaces.Box(0, 1, (2,), np.float64), np.float64),
        (spaces.Box(0, 2**24, (2,), np.int32), np.float32),
        (spaces.Box(0, 2**24 + 1, (2,), np.int32), np.float64),
        (spaces.Box(-np.inf, np.inf, (2,), np.int64), np.float64),
        (spaces.Discrete(3), np.float32),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (1,), np.float64))), np.float64),
    ],
    ids=str,
)
def test_precision(space: spaces.Space[Any], dtype: type) -> None:
    assert observation_dtype(space) == dtype


def test_changing_an_observation_leaves_the_flat_one() -> None:
    flat = np.zeros((2, 3), np.float32)
    unflatten_observations(spaces.Box(0, 1, (3,)), flat)[:] = 1
    assert not flat.any()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Text(5)),
        spaces.Box(0, 1, (2,), np.longdouble),
    ],
    ids=str,
)
def test_observation_spaces_that_are_not_supported(space: spaces.Space[Any]) -> None:
    for ask in (observation_size, observation_parts, observation_dtype):
        with pytest.raises(TypeError, match="observation spaces are Box, Discrete, MultiDiscrete, MultiBinary, and"):
            ask(space)


PAIR = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,)))


@pytest.mark.parametrize(
    ("space", "given", "index", "message"),
    [
        (spaces.Box(0, 1, (2, 3)), np.zeros((4, 6)), (), r"must have shape \[..., 2, 3\], got \(4, 6\)"),
        (spaces.Box(0, 1, (2,)), 1.0, (), r"must have shape \[..., 2\], got \(\)"),
        (spaces.Box(0, 1, (2,)), [[1.0], [1.0, 2.0]], (), "cannot be made an array"),
        (spaces.Box(0, 1, (2,)), np.array([None, {}]), (), "must be numbers, got object"),
        (spaces.Box(0, 1, (2,)), torch.zeros(2, requires_grad=True), (), "cannot be made an array"),
        (spaces.Box(0, 9, (2,), np.int32), np.array([0.5, 1]), (), "must be of int32, got float64"),
        (spaces.Box(-np.inf, np.inf, (1,), np.int64), [[1], [2**60]], (1,), r"beyond 2\^53"),
        (spaces.Discrete(3), np.array([0, 1, 3]), (2,), r"outside Discrete\(3\) \(it is 3\)"),
        (spaces.Discrete(3, start=2), 1, (), r"outside Discrete\(3, start=2\) \(it is 1\)"),
        (spaces.Discrete(3), 1.0, (), "must be of int64, got float64"),
        (spaces.MultiDiscrete([2, 3]), [[[1, 2]], [[0, -1]]], (1, 0), r"outside MultiDiscrete\(\[2 3\]\)"),
        (spaces.MultiBinary(2), [[0, 1], [2, 0]], (1,), r"outside MultiBinary\(2\)"),
        (PAIR, np.zeros(5), (), r"must be a dict of \['a', 'b'\], got ndarray"),
        (PAIR, {"a": 1}, (), r"must be a dict of \['a', 'b'\], got \['a'\]"),
        (PAIR, {"a": [1, 4], "b": np.zeros((2, 2))}, (1,), r"the part 'a' is outside Discrete\(3\)"),
        (
            PAIR,
            {"a": [1, 2], "b": np.zeros((3, 2))},
            (),
            r"'b' has leading dimensions \(3,\), those before",
        ),
        (spaces.Tuple((PAIR,)), (1, 2), (), "must be a tuple of 1, got 2"),
        (spaces.Tuple((PAIR,)), np.zeros(3), (), "must be a tuple of 1, got ndarray"),
    ],
)
def test_observations_that_do_not_fit(space: spaces.Space[Any], given: Any, index: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        flatten_observations(space, given)
    assert caught.value.index == index


def test_flat_observations_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"must have shape \[..., 5\], got \(2, 4\)"):
        unflatten_observations(PAIR, np.zeros((2, 4)))


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_actions_there_and_back(space: spaces.Space[Any]) -> None:
    batched = batch_space(space, 6)
    batched.seed(2)
    batch = batched.sample()
    stored = encode_actions(space, batch)
    size = action_size(space)
    assert stored.shape == ((6, size) if size else (6,))
    assert stored.dtype == (space.dtype if isinstance(space, spaces.Box) else np.int64)
    if not isinstance(space, spaces.Box):
        assert stored.min() >= 0
    assert equal(decode_actions(space, stored), batch)
    assert equal(encode_actions(space, batch[2]), stored[2])
    one = decode_actions(space, stored[2])
    assert equal(one, batch[2]) and space.contains(one)
    assert equal(decode_actions(space, encode_actions(space, batch[None])), batch[None])


def test_action_sizes() -> None:
    assert [action_size(space) for space in ACTIONS] == [0, 0, 2, 3, 4, 1]


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([[2, 3]]),
        spaces.Box(0, 9, (2,), np.int32),
        spaces.Box(0, 9, (2,), np.longdouble),
        spaces.Dict(a=spaces.Discrete(2)),
        "Discrete",
    ],
    ids=str,
)
def test_action_spaces_that_are_not_supported(space: Any) -> None:
    with pytest.raises(
        TypeError, match="action spaces are Discrete, MultiDiscrete of one dimension, and Box of floats"
    ):
        check_action_space(space)


@pytest.mark.parametrize(
    ("space", "given", "index", "message"),
    [
        (spaces.Discrete(3), [0, 3], (1,), r"an action outside 0..2 \(it is 3\)"),
        (spaces.Discrete(3, start=2), 1, (), r"an action outside 2..4 \(it is 1\)"),
        (
            spaces.Discrete(3),
            [0.0, 1.0],
            (),
            r"actions must be integers, got float64: the action space is",
        ),
        (spaces.MultiDiscrete([3, 2]), [[0, 1], [2, 2]], (1,), r"an action outside 0..1 \(component 1 is 2\)"),
        (spaces.MultiDiscrete([3, 2]), [0, 1, 1], (), r"actions must have shape \[..., 2\], got \(3,\)"),
        (spaces.Box(-1, 1, (2,)), [[0.0, 0.0], [0.0, 1.5]], (1,), r"an action outside -1..1 \(component 1 is 1.5\)"),
        (spaces.Box(-1, 1, (2,)), [0.0, np.nan], (), "the action is NaN or infinite"),
        (spaces.Box(-np.inf, np.inf, (1,)), [[0.0], [1e300]], (1,), "the action is NaN or infinite"),
        (spaces.Box(-1, 1, (2,)), [0, 1], (), "actions must be floats, got int64"),
        (spaces.Box(-1, 1, (2,)), np.array([[0.0, None]]), (), "actions must be numbers, got object"),
    ],
)
def test_actions_that_do_not_fit(space: spaces.Space[Any], given: Any, index: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        encode_actions(space, given)
    assert caught.value.index == index


def test_a_bound_that_is_no_binary_fraction_can_be_reached() -> None:
    space = spaces.Box(-0.7, 0.7, (1,), np.float32)  # whose bounds are 0.69999999
    assert encode_actions(space, [0.7]) == np.float32(0.7)


def test_stored_actions_of_another_width() -> None:
    for space in (spaces.MultiDiscrete([3, 2]), spaces.Box(-1, 1, (2,))):
        with pytest.raises(ValueError, match=r"must have shape \[..., 2\], got \(3,\)"):
            decode_actions(space, np.zeros(3, int))


def test_action_space_of_a_number() -> None:
    for number in (3, np.int64(3), torch.tensor(3)):
        assert as_action_space(number) == spaces.Discrete(3)  # type: ignore[arg-type]
    box = spaces.Box(-1, 1, (2,))
    assert as_action_space(box) is box
    for bad in (0, -1):
        with pytest.raises(ValueError, match="the number of actions must be positive, got"):
            as_action_space(bad)
    for other in (2.0, "2", None):
        with pytest.raises(TypeError, match="must be a space or a number of actions, got"):
            as_action_space(other)  # type: ignore[arg-type]
