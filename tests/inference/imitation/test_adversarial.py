"""Actor-critics that learn from demonstrations: what their batches hold, resuming, loading, bad demonstrations."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import pyrocontrol
from pyrocontrol.envs import Demonstrations, Episode, collect, evaluate_policy
from pyrocontrol.guides import GaussianPolicy
from pyrocontrol.inference import DAC, SQIL, CoupledRandomNetworks, Discriminator, SeedBatch, learn
from soft_learners import assert_alike, transitions

SEEN, ACTED = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(np.float32([0, -4]), np.float32([2, 4]))
SMALL: dict[str, Any] = {"hidden": (8,)}


def traces() -> Demonstrations:
    """Two demonstrations, of three steps and of two; observation n of trace k is (10 k + n) times (1, 2, 3)."""
    seen = [(10 * trace + np.arange(length + 1.0))[:, None] * [1, 2, 3] for trace, length in enumerate((3, 2))]
    acted = [np.array([[0, -4], [2, 4], [1, 0]]), np.array([[1.5, 2], [1, 1]])]
    return Demonstrations.from_episodes(
        [
            Episode(seen[0].astype(np.float32), acted[0].astype(np.float32), truncated=True),
            Episode(seen[1].astype(np.float32), acted[1].astype(np.float32), terminated=True),
        ],
        ACTED,
        SEEN,
    )


class Sum(nn.Module):
    """Evidence that says the sum of what it sees, and remembers what it learnt from."""

    def update(self, expert: Tensor, agent: Tensor) -> dict[str, Tensor]:
        self.learnt_from = expert, agent
        return {"loss": torch.tensor(7.0)}

    def reward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


def make(kind: str, **options: Any) -> Any:
    torch.manual_seed(11)
    policy = GaussianPolicy(3, 2, **SMALL)
    if kind == "SQIL":
        return SQIL(policy, traces(), **SMALL | options)
    evidence = {"DAC": Discriminator(6, **SMALL), "DAC, densities": CoupledRandomNetworks(6, **SMALL)}[kind]
    return DAC(policy, traces(), evidence=evidence, **SMALL | options)


KINDS = ["DAC", "DAC, densities", "SQIL"]


def test_demonstrated_steps_are_transitions() -> None:
    learner = make("SQIL")
    steps = learner.demonstrated(200)
    rows = torch.cat([*(field.reshape(200, -1) for field in steps)], 1).unique(dim=0)
    firsts = torch.tensor([0.0, 1, 2, 10, 11])
    expected = torch.stack([firsts, 2 * firsts, 3 * firsts], 1)
    actions = torch.tensor([[-1.0, -1], [1, 1], [0, 0], [0.5, 0.5], [0, 0.25]])
    ended = torch.tensor([0.0, 0, 0, 0, 1])  # the first trace was cut off: its last step is no end of the task
    expected = torch.cat([expected, actions, torch.zeros(5, 1), expected + torch.tensor([1, 2, 3]), ended[:, None]], 1)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("inputs", ["sa", "ss", "sas"])
def test_batches_are_mixed_and_rewards_are_the_evidence(inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = DAC(GaussianPolicy(3, 2, **SMALL), traces(), evidence=Sum(), inputs=inputs, **SMALL)
    seen: list[Any] = []
    monkeypatch.setattr(learner, "step", lambda batch: seen.append(batch) or {"critic_loss": torch.zeros(())})
    own = transitions(8)
    numbers = learner.update(own)
    (batch,) = seen
    for mixed, mine in zip(batch[:2] + batch[3:], own[:2] + own[3:], strict=True):
        assert torch.equal(mixed[2:], mine[2:])  # a quarter is demonstrated
    parts = {"sa": (0, 1), "ss": (0, 3), "sas": (0, 1, 3)}[inputs]
    torch.testing.assert_close(batch.rewards, sum(batch[part].sum(-1) for part in parts))
    expert, agent = learner.evidence.learnt_from
    assert torch.equal(agent, torch.cat([own[part] for part in parts], -1))
    known = torch.tensor([0.0, 1, 2, 10, 11])
    assert len(expert) == 8 and torch.isin(expert[:, 0], known).all()
    assert torch.isin(batch.observations[:2, 0], known).all()
    assert numbers["evidence_loss"] == 7 and numbers["reward"] == batch.rewards.mean()


def test_sqil_rewards_what_was_demonstrated(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make("SQIL")
    seen: list[Any] = []
    monkeypatch.setattr(learner, "step", lambda batch: seen.append(batch) or {"critic_loss": torch.zeros(())})
    learner.update(transitions(8))
    assert seen[0].rewards.tolist() == [1] * 4 + [0] * 4
    assert torch.isin(seen[0].observations[:4, 0], torch.tensor([0.0, 1, 2, 10, 11])).all()


# Learning in an environment


class Line(gymnasium.Env[Any, Any]):
    """A point on a line, x' = x + a / 10, for 20 steps; x is seen. Nobody learns from the reward, -|x|."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-2.0, 2.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.x = 0, float(self.np_random.uniform(-1, 1))
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps, self.x = self.steps + 1, self.x + float(action[0]) / 10
        return np.array([self.x], np.float32), -abs(self.x), False, self.steps == 20, {}


def on_the_line(kind: Any = DAC, demonstrations: Any = None, **options: Any) -> Any:
    torch.manual_seed(3)
    demonstrations = demonstrations or collect(
        Line(), lambda seen: np.clip(-10 * seen, -2, 2), 1, seed=1, progress=False
    )
    policy = GaussianPolicy(1, 1, hidden=(16,))  # the same for every evidence
    if kind is DAC:
        options = {"evidence": Discriminator(2, hidden=(32,), lr=1e-3)} | options
    return kind(policy, demonstrations, **{"hidden": (16,), "lr": 3e-3} | options)


OPTIONS: dict[str, Any] = {"batch_size": 32, "start": 50, "progress": False}


@pytest.mark.parametrize("kind", [DAC, SQIL])
def test_it_learns_from_one_demonstration_and_no_reward(kind: Any) -> None:
    learner = on_the_line(kind, discount=0.9, smoothing=0.05)

    def earns() -> float:
        return statistics.fmean(evaluate_policy(Line(), learner.policy.within(Line()), 20)["return"])

    assert earns() < -20
    learn(learner, Line(), steps=500, **OPTIONS)
    assert earns() > -5  # the expert earns -2 on average


@pytest.mark.parametrize("kind", [DAC, SQIL])
def test_a_run_resumes_to_the_same_bits_and_is_loaded(kind: Any, tmp_path: Path) -> None:
    straight, first, resumed = (on_the_line(kind) for _ in range(3))
    learn(straight, Line(), steps=110, **OPTIONS)
    learn(first, Line(), steps=77, out=tmp_path, **OPTIONS)
    learn(resumed, Line(), steps=110, out=tmp_path, **OPTIONS)
    assert_alike(straight, resumed, rtol=0, atol=0)
    torch.testing.assert_close(straight.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    straight.policy.save(tmp_path / "policy.pt")
    x = np.array([0.4], np.float32)
    for path in ("policy.pt", "checkpoint.pt"):
        policy = pyrocontrol.load(tmp_path / path)
        assert np.array_equal(policy.act(x, deterministic=True), straight.policy.act(x, deterministic=True))
    demonstrations = collect(Line(), lambda seen: np.clip(-10 * seen, -2, 2), 1, seed=1, progress=False)
    whole = pyrocontrol.load(tmp_path / "checkpoint.pt", kind.__name__, demonstrations=demonstrations)
    torch.testing.assert_close(whole.state_dict(), straight.state_dict(), rtol=0, atol=0)
    others = collect(Line(), lambda seen: np.clip(-10 * seen, -2, 2), 1, seed=2, progress=False)
    with pytest.raises(ValueError, match="demonstrations="):
        learn(on_the_line(kind, others), Line(), steps=120, out=tmp_path, **OPTIONS)


# Bad input


def one_trace(seen: Any, acted: Any) -> Demonstrations:
    return Demonstrations.from_episodes([Episode(np.zeros((3, *seen.shape)), np.zeros((2, *acted.shape)))], acted, seen)


@pytest.mark.parametrize("kind", [DAC, SQIL])
def test_bad_demonstrations_are_refused(kind: Any) -> None:
    plain = spaces.Box(-1.0, 1.0, (2,))
    for error, message, given in (
        (TypeError, "must be Demonstrations, which say what each step led to, not Transitions", traces().transitions()),
        (TypeError, "not a Box of floats|must be a Box of floats", Demonstrations.from_episodes(
            [Episode(np.zeros((3, 3)), np.zeros(2, int))], 4, SEEN)),
        (ValueError, "acts with 2 numbers, the space of actions", one_trace(SEEN, spaces.Box(-1.0, 1.0, (3,)))),
        (ValueError, "no bounds to scale to", one_trace(SEEN, spaces.Box(-np.inf, np.inf, (2,)))),
        (ValueError, "the demonstrations have 4 observation numbers, the GaussianPolicy 3",
         one_trace(spaces.Box(-1.0, 1.0, (4,)), plain)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            kind(GaussianPolicy(3, 2), given)
    with pytest.raises(ValueError, match="demonstrations have bounds"):
        kind(GaussianPolicy(3, 2, squash=False), traces())
    with pytest.raises(ValueError, match="expert_share must be below 1"):
        kind(GaussianPolicy(3, 2), traces(), expert_share=1)
    with pytest.raises(TypeError, match="has its own update"):
        SeedBatch([kind(GaussianPolicy(3, 2), traces())])


def test_bad_evidence_is_refused() -> None:
    policy = GaussianPolicy(3, 2)
    with pytest.raises(ValueError, match="the evidence takes 4 numbers, 'ss' has 6"):
        DAC(policy, traces(), evidence=Discriminator(4))
    with pytest.raises(TypeError, match="evidence must be a module with update and reward, not Linear"):
        DAC(policy, traces(), evidence=nn.Linear(2, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs must be one of sa, ss, sas, not 'a'"):
        DAC(policy, traces(), inputs="a")  # type: ignore[arg-type]
    assert DAC(policy, traces(), inputs="sas").evidence.size == 8
