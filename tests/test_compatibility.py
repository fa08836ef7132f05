"""What version 0.1 wrote can still be read: data sets, hierarchies, checkpoints of every kind of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import pyrocontrol as pc
from pyrocontrol.envs import bubble_sort

OLD = Path(__file__).parent / "fixtures" / "version-0.1"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(OLD / "expected.npz") as arrays:
        return dict(arrays)


def test_demonstrations() -> None:
    made = bubble_sort.demonstrations(3, seed=0)
    read = pc.envs.Demonstrations.load(OLD / "bubble_sort.npz")
    assert torch.equal(read.observations, made.observations) and torch.equal(read.actions, made.actions)
    assert torch.equal(read.task, made.task) and len(pc.envs.Demonstrations.load(OLD / "cart_pole.npz")) == 2


def test_a_hierarchy(expected: dict[str, np.ndarray]) -> None:
    action, _ = pc.envs.Hierarchy.load(OLD / "hierarchy.pt").predict(
        np.array([0.1, -0.2, 0.3], np.float32), deterministic=True
    )
    assert np.allclose(action, expected["hierarchy"])


def test_a_clone(expected: dict[str, np.ndarray]) -> None:
    env = gymnasium.make("CartPole-v1")
    policy = pc.models.ReactivePolicy(env.observation_space, env.action_space, hidden=(8,))
    assert pc.inference.load_checkpoint(OLD / "clone" / "checkpoint.pt", policy) == 4
    seen = pc.envs.Demonstrations.load(OLD / "cart_pole.npz").observations[:1, :3]
    assert np.allclose(policy.distribution(seen).logits.detach(), expected["clone_logits"])


def test_a_program(expected: dict[str, np.ndarray]) -> None:
    # A file of version 0.1 does not tell the horizon, and there was no bias of the return.
    given: dict[str, Any] = {"obs_size": 22, "arg_size": 1, "hidden": (4,)}
    program = pc.models.ControlProgram(bubble_sort.BUBBLE_SORT_TREE, horizon=500, **given)
    pc.inference.load_checkpoint(OLD / "hvil" / "checkpoint.pt", program, pc.guides.CallStackGuide(program))
    program = pc.models.ControlProgram(bubble_sort.BUBBLE_SORT_TREE, **given)
    pc.inference.load_checkpoint(OLD / "hvil" / "checkpoint.pt", program, pc.guides.CallStackGuide(program))
    assert np.allclose(torch.cat([p.detach().flatten() for p in program.parameters()])[:20], expected["program"])


@pytest.mark.parametrize(
    ("name", "kind"), [("learn", pc.inference.SoftActorCritic), ("learn_first", pc.inference.FirstSoftActorCritic)]
)
def test_a_run_of_learning_goes_on(name: str, kind: Any, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    learner = kind(pc.guides.FlowPolicy(3, 1, hidden=(8,)), 3, 1, hidden=(8, 8))
    pc.inference.load_checkpoint(OLD / name / "checkpoint.pt", learner)
    values = learner.critics(torch.zeros(1, 3), torch.zeros(1, 1)).detach()
    assert np.allclose(values, expected["q" if name == "learn" else "q_first"])
    shutil.copytree(OLD / name, tmp_path / "out")
    given: dict[str, Any] = {"start": 10, "batch_size": 4, "replay": 100, "checkpoint_every": 50, "progress": False}
    result = pc.inference.learn(learner, gymnasium.make("Pendulum-v1"), steps=25, out=tmp_path / "out", **given)
    assert result.step == 25
