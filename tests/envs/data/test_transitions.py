"""Transitions: what a reactive policy learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Text

from pyrocontrol.envs import Demonstrations, Episode, Transitions

BOX = Box(-1, 1, (2,))


def traces(action_space: Any, actions: Any) -> Demonstrations:
    """Three episodes of 2, 3 and 1 actions whose observations count up."""
    episodes, first = [], 0
    for length in (2, 3, 1):
        observations = np.arange(first, first + length + 1, dtype=np.float32)[:, None]
        episodes.append(Episode(observations, actions(length)))
        first += 10
    return Demonstrations.from_episodes(episodes, action_space)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (Discrete(3), lambda n: np.arange(n)),
        (MultiDiscrete([3, 2]), lambda n: np.stack([np.arange(n), np.ones(n, int)], -1)),
        (BOX, lambda n: np.stack([np.arange(n) / 4, -np.ones(n)], -1)),
    ],
    ids=["discrete", "multi-discrete", "box"],
)
def test_transitions_are_the_steps_with_actions(space: Any, actions: Any) -> None:
    found = traces(space, actions).transitions()
    assert len(found) == 6 and found.observations[:, 0].tolist() == [0, 1, 10, 11, 12, 20]
    assert torch.equal(
        found.actions, torch.from_numpy(np.concatenate([actions(n) for n in (2, 3, 1)])).to(found.actions)
    )
    assert found.acted.tolist() == [True] * 6 and found.goals is None
    assert found.action_space == space and found.observation_space == Box(-np.inf, np.inf, (1,))
    batch = found[torch.tensor([5, 0])]
    assert batch.observations[:, 0].tolist() == [20, 0] and batch.acted.shape == (2,)
    assert torch.equal(batch.actions, found.actions[[5, 0]])


def transitions(**changes: Any) -> Transitions:
    """Four transitions with goals."""
    settings = {
        "observations": torch.arange(8.0).reshape(4, 2),
        "actions": torch.tensor([0, 1, 2, 0]),
        "action_space": 3,
        "goals": torch.ones(4, 1),
    }
    return Transitions(**(settings | changes))  # type: ignore[arg-type]


def test_choosing() -> None:
    data = transitions()
    assert data[1].observations.tolist() == [[2, 3]] and data[-1].observations.tolist() == [[6, 7]]
    assert data[1:3].actions.tolist() == [1, 2] and data[::-1].actions.tolist() == [0, 2, 1, 0]
    assert data[[0, -2]].actions.tolist() == [0, 2]
    assert data[data.actions == 0].observations[:, 0].tolist() == [0, 6]
    assert data[np.array([3, 3])].goals.tolist() == [[1], [1]]  # type: ignore[union-attr]
    assert [len(one) for one in data] == [1] * 4
    for outside in (4, -5, [0, 4], torch.tensor([-5])):
        with pytest.raises(IndexError, match="transition (4|-5) of 4"):
            data[outside]  # type: ignore[index]
    for nothing in (slice(4, None), [], torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="no transitions: the selection is empty"):
            data[nothing]
    for bad in (torch.zeros(3, dtype=torch.bool), [0.5], [[0]]):
        with pytest.raises(IndexError, match="mask of 4 transitions must have shape|chosen by integers"):
            data[bad]  # type: ignore[index]


def test_number_of_actions() -> None:
    assert transitions().num_actions == 3
    with pytest.raises(TypeError, match="only Discrete actions are numbered"):
        _ = transitions(actions=torch.zeros(4, 2), action_space=BOX).num_actions


def test_precision() -> None:
    double = transitions(actions=torch.zeros(4, 2), action_space=BOX).to("cpu", torch.float64)
    assert double.observations.dtype == double.actions.dtype == double.goals.dtype == torch.float64  # type: ignore[union-attr]
    assert transitions().to(dtype=torch.float64).actions.dtype == torch.long
    assert double.device == torch.device("cpu")


def test_fingerprint() -> None:
    data = transitions()
    assert data.fingerprint() == transitions().fingerprint() == data[:].fingerprint()
    others = [
        transitions(actions=torch.tensor([0, 1, 2, 1])),
        transitions(observations=torch.zeros(4, 2)),
        transitions(goals=None),
        transitions(goals=torch.zeros(4, 1)),
        transitions(action_space=4),
        transitions(observation_space=Box(0, 9, (2,))),
        data[[1, 0, 2, 3]],
        data.to(dtype=torch.float64),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 9


def test_repr() -> None:
    assert repr(transitions()) == "Transitions(4, 2 observation numbers, actions Discrete(3), goals of 1 numbers, cpu)"


NAN = torch.tensor([[0.0, 0.0], [0.0, torch.nan], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"observations": np.zeros((4, 2))}, TypeError, "observations must be a tensor, got ndarray"),
        ({"actions": None}, TypeError, "actions must be a tensor, got NoneType"),
        ({"goals": [1.0]}, TypeError, "goals must be a tensor, got list"),
        ({"action_space": Text(3)}, TypeError, "action spaces are"),
        ({"observation_space": Text(3)}, TypeError, "observation spaces are"),
        ({"observation_space": BOX, "observations": torch.zeros(4, 3)}, ValueError, "have width 3, their space 2"),
        ({"observations": torch.zeros(4)}, ValueError, r"observations must have shape \[N, O\]"),
        ({"observations": torch.zeros(0, 2)}, ValueError, r"observations must have shape \[N, O\], N positive"),
        ({"observations": torch.zeros(4, 2).long()}, ValueError, "observations must be floating point"),
        ({"observations": NAN}, ValueError, "transition 1: observations hold NaN"),
        ({"goals": NAN}, ValueError, "transition 1: goals hold NaN"),
        ({"goals": torch.zeros(3, 1)}, ValueError, r"goals must have shape \[4, G\]"),
        ({"goals": torch.zeros(4, 1).long()}, ValueError, "goals must be floating point"),
        ({"actions": torch.zeros(3).long()}, ValueError, r"actions must have shape \[4\]"),
        ({"actions": torch.zeros(4)}, ValueError, "actions must be long"),
        ({"actions": torch.tensor([0, 1, 3, 0])}, ValueError, r"transition 2: an action outside 0..2 \(it is 3\)"),
        ({"actions": NAN, "action_space": BOX}, ValueError, "transition 1: the action is NaN"),
        ({"actions": 2 * torch.ones(4, 2), "action_space": BOX}, ValueError, "transition 0: an action outside -1..1"),
    ],
)
def test_bad_transitions(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        transitions(**changes)
