"""Episodes of any spaces, and whether two things are equal to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.models.space_json import space_to_json

Space = spaces.Space[Any]

FIELDS = ("observations", "actions", "lengths", "task", "arguments", "calls", "rewards", "terminated", "truncated")
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
BYTES = spaces.Box(0, 255, (5,), np.uint8)
IMAGE = spaces.Box(0, 255, (2, 3, 3), np.uint8)
#: Parts of all kinds, two of them bytes.
NAMED = spaces.Dict(
    camera=spaces.Box(0, 255, (2, 2), np.uint8),
    goal=spaces.Box(-1, 1, (2,), np.float32),
    memory=spaces.Box(0, 9, (3,), np.uint8),
    rooms=spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiBinary(2))),
)
OBSERVATIONS: list[Space] = [
    VECTOR,
    BYTES,
    IMAGE,
    NAMED,
    spaces.Tuple((IMAGE, BYTES)),
    spaces.Box(-1, 1, (2, 2)),
    spaces.Box(-1, 1, ()),
    spaces.Box(-9, 9, (3,), np.int64),
    spaces.Box(0, 1, (3,), np.bool_),
    spaces.MultiBinary(5),
    spaces.MultiDiscrete([2, 3], start=[1, 5]),
    spaces.MultiDiscrete([1, 1], start=[1, 5]),
    spaces.Discrete(4, start=2),
]
ACTIONS: list[Space] = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2], start=[0, 4]),
    spaces.Box(-0.7, 0.7, (2,), np.float32),
    spaces.Box(-0.1, 0.1, (2, 2), np.float64),
    spaces.Box(-1, 1, (), np.float16),
]
BOX = ACTIONS[3]


def batch_of(space: Space, count: int, seed: int) -> Any:
    """Elements of a space, as a batch in the environment's form."""
    batched = batch_space(space, count)
    batched.seed(seed)
    return batched.sample()


def recorded(
    action_space: Space, observation_space: Space = VECTOR, lengths: Sequence[int] = (3, 1, 4)
) -> list[Episode]:
    """Episodes of so many actions, with rewards, ending in all ways."""
    return [
        Episode(
            batch_of(observation_space, length + 1, seed),
            batch_of(action_space, length, 10 + seed),
            rewards=np.random.default_rng(seed).standard_normal(length),
            terminated=seed % 2 == 0,
            truncated=seed > 1,
        )
        for seed, length in enumerate(lengths)
    ]


def equal(left: Any, right: Any) -> bool:
    """Equal to the last bit, in types and shapes too."""
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def same(left: Demonstrations, right: Demonstrations) -> bool:
    """Equal spaces, and equal tensors to the last bit."""
    described = [(space_to_json(one.action_space), space_to_json(one.observation_space)) for one in (left, right)]
    pairs = [(getattr(left, name), getattr(right, name)) for name in FIELDS]
    return described[0] == described[1] and all(
        a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )
