"""VMIL: each part of an update against its equation, resuming to the bit, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.guides import BeliefPolicy
from pyrocontrol.inference import VMIL, Discriminator, SequenceBatch, learn
from pyrocontrol.models import Start

O, A, L = 3, 2, 5  # noqa: E741
KINDS = ["observed", "latent", "pixels", "both"]


class Toy(gymnasium.Env[Any, np.ndarray]):
    """A point that is pushed; it shows its place, pictures of it, or both."""

    action_space = spaces.Box(-2.0, 2.0, (A,), np.float32)

    def __init__(self, kind: str = "observed") -> None:
        vector = spaces.Box(-np.inf, np.inf, (O,), np.float32)
        image = spaces.Box(0, 255, (64, 64, 1), np.uint8)
        both = spaces.Dict({"place": vector, "picture": image})
        self.kind, self.observation_space = kind, {"pixels": image, "both": both}.get(kind, vector)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(size=A), 0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.steps = 0.9 * self.place + 0.1 * action, self.steps + 1
        return self._seen(), 0.0, False, self.steps >= 12, {}

    def _seen(self) -> Any:
        vector = np.array([*self.place, self.place.sum()], np.float32)
        picture = np.full((64, 64, 1), int(np.clip(128 + 20 * self.place[0], 0, 255)), np.uint8)
        return {"pixels": picture, "both": {"place": vector, "picture": picture}}.get(self.kind, vector)


def shown(kind: str = "observed", steps: int = 12) -> Demonstrations:
    env, rng, episodes = Toy(kind), np.random.default_rng(0), []
    for seed in range(2):
        seen, actions = [env.reset(seed=seed)[0]], []
        for _ in range(steps):
            actions.append(rng.uniform(-1, 1, A).astype(np.float32))
            seen.append(env.step(actions[-1])[0])
        batch: Any = (
            {name: np.stack([each[name] for each in seen]) for name in seen[0]} if kind == "both" else np.stack(seen)
        )
        episodes.append(Episode(batch, np.stack(actions)))
    return Demonstrations.from_episodes(episodes, env.action_space, env.observation_space)


def policy(kind: str = "observed", **options: Any) -> BeliefPolicy:
    env = Toy(kind)
    torch.manual_seed(0)
    if kind == "observed":
        return BeliefPolicy.observed(env.observation_space, env.action_space, hidden=(8, 8), members=2)
    sizes = {"memory_size": 6, "latent_size": 3, "hidden": 8, "depth": 1} | options
    return BeliefPolicy.latent(env.observation_space, env.action_space, **sizes)


def learner(kind: str = "observed", **options: Any) -> VMIL:
    given = {"length": L, "horizon": 2, "pairs": 16, "hidden": (8,)} | options
    return VMIL(policy(kind), shown(kind), **given)


def batch(kind: str = "observed", rows: int = 6) -> SequenceBatch:
    replay = learner(kind).make_replay(100, seed=0)
    env, rng = Toy(kind), np.random.default_rng(1)
    seen, _ = env.reset(seed=7)
    for step in range(12):
        action = rng.uniform(-1, 1, A).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(2 * action)
        replay.add(seen, action, reward, following, terminated, truncated, first=step == 0)
        seen = following
    return replay.sample(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_changes_every_part(kind: str) -> None:
    given = learner(kind)
    before = copy.deepcopy(given.state_dict())
    numbers = given.update(batch(kind))
    assert all(not value.requires_grad and value.isfinite().all() for value in numbers.values())
    unchanged = {
        name.split(".")[0] if not name.startswith("policy") else name
        for name, value in given.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and torch.equal(value, before[name])
    }
    parts = [name for name in unchanged if "readings" not in name and "std" not in name]
    assert not [name for name in parts if name.startswith(("policy.actor", "critics", "target", "log_alpha"))]
    assert not [name for name in parts if name.startswith("policy.world.dynamics.weights")]


def test_the_steps_of_an_update_leave_each_others_parameters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = learner("latent")
    taken: dict[str, set[int]] = {}
    original = VMIL._take

    def watched(self: VMIL, name: str, loss: Tensor, parameters: list[Any]) -> None:
        before = {id(p): p.detach().clone() for p in self.parameters()}
        original(self, name, loss, parameters)
        taken[name] = {id(p) for p in self.parameters() if not torch.equal(p, before[id(p)])}
        assert taken[name] <= {id(p) for p in parameters}

    monkeypatch.setattr(VMIL, "_take", watched)
    given.update(batch("latent"))
    assert {*taken} == {"model", "actor", "critics", "temperature"} and all(taken.values())


@pytest.mark.parametrize("kind", ["observed", "latent"])
def test_the_actors_loss_is_minus_the_elbo_where_lambda_and_gamma_are_1(kind: str) -> None:
    given = learner(kind, discount=0.999999999, mixing=1.0, horizon=1, temperature=0.3)
    dynamics = given.policy.world.dynamics
    start = Start(torch.randn(7, dynamics.memory_size), torch.randn(7, *dynamics.event_shape))

    def evidence(before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return given.evidence.reward(torch.cat([given._read(before), given._read(after)], -1))

    optimality = pc.models.ImaginedOptimality(
        dynamics, evidence, given.target.minimum, prior=given.prior, horizon=1, alpha=0.3
    )
    torch.manual_seed(3)
    elbo = pc.inference.StepwiseKL_ELBO(max_plate_nesting=1)
    loss = 0.3 * elbo.loss(optimality.model, optimality.guide_of(given.policy.actor), start) / 7
    torch.manual_seed(3)
    assert float(given._policy_step(start)["policy_loss"]) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"batch_size": 3, "start": 14, "replay": 100, "progress": False, "checkpoint_every": 4}

    def run(out: Path, *steps: int) -> VMIL:
        for upto in steps:
            found = learner(kind)
            learn(found, Toy(kind), steps=upto, out=out, **common)
        return found

    whole, parts = run(tmp_path / "a", 24), run(tmp_path / "b", 17, 24)
    for mine, theirs in zip(whole.state_dict().items(), parts.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        if isinstance(mine[1], Tensor):
            assert torch.equal(mine[1], theirs[1]), mine[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_comes_back_from_its_file_and_acts_alike(kind: str, tmp_path: Path) -> None:
    given = learner(kind)
    given.update(batch(kind))
    given.policy.save(tmp_path / "policy.pt")
    loaded = pc.load(tmp_path / "policy.pt")
    found = [pc.envs.evaluate_policy(Toy(kind), each, 1, seed=3)["return"] for each in (given.policy, loaded)]
    assert found[0] == found[1]
    env = Toy(kind)
    seen, _ = env.reset(seed=0)
    state = other = None
    for _ in range(3):
        action, state = given.policy.predict(seen, state, deterministic=True)
        again, other = loaded.predict(seen, other, deterministic=True)
        assert np.array_equal(action, again) and env.action_space.contains(action)
        seen = env.step(action)[0]


def test_what_a_world_model_foresees_is_what_its_ensemble_says() -> None:
    given = policy("observed")
    x, actions = torch.randn(4, 6, O), torch.rand(4, 6, A)
    found = given.foresee(x, actions, 2)
    assert found.shape == (4, 4, O)
    expected = x[:, 1]
    for t in range(2, 6):
        expected = given.world.dynamics.prior(torch.cat([expected, actions[:, t - 1]], -1)).mean
        torch.testing.assert_close(found[:, t - 2], expected)
    with pytest.raises(ValueError, match="can be given"):
        given.foresee(x, actions, 6)


def test_a_policy_that_has_learnt_keeps_its_units() -> None:
    given = policy()
    VMIL(given, shown(), length=L)
    mean = given.readings.mean_observations.clone()
    VMIL(given, shown(steps=6), length=L)
    assert torch.equal(given.readings.mean_observations, mean)


def test_windows_of_demonstrations_are_drawn_from_each_place_alike() -> None:
    pool = learner().demonstrations
    assert pool.starts.tolist() == [[row, t] for row in range(2) for t in range(13 - L + 1)]
    seen, done = pool.sample(50)
    assert seen.shape == (50, L, O) and done.shape == (50, L, A)
    # Actions were given within (-2, 2).
    assert float(pool.actions.abs().max()) <= 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match="BeliefPolicy"):
        VMIL(pc.guides.GaussianPolicy(O, A), shown())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Demonstrations"):
        VMIL(policy(), [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="longest has 13"):
        VMIL(policy(), shown(), length=14)
    with pytest.raises(ValueError, match="policy takes"):
        VMIL(policy("pixels"), shown())
    other = shown()
    narrow = Demonstrations(
        other.observations, other.actions, other.lengths, spaces.Box(-1.0, 1.0, (A,)), other.observation_space
    )
    with pytest.raises(ValueError, match="actions are in"):
        VMIL(policy(), narrow, length=L)
    with pytest.raises(ValueError, match="64 x 64 pixels"):
        BeliefPolicy.latent(spaces.Box(0, 255, (84, 84, 3), np.uint8), Toy.action_space)
    for box in (
        spaces.Box(0, 9, (4,), np.int32),
        spaces.Box(-1.0, 1.0, (4, 2)),
        spaces.Box(0, 255, (64, 64), np.uint8),
    ):
        with pytest.raises(ValueError, match="floats in one row or bytes"):
            BeliefPolicy.latent(box, Toy.action_space)
    with pytest.raises(TypeError, match="Box of floats"):
        BeliefPolicy.observed(Toy().observation_space, spaces.Discrete(3))
    with pytest.raises(ValueError, match="prior has 5"):
        VMIL(policy(), shown(), length=L, prior=pc.models.UniformPrior(5))
    for evidence in (3, torch.nn.Linear(2 * O, 1)):
        with pytest.raises(TypeError, match="module with update and reward"):
            VMIL(policy(), shown(), evidence, length=L)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evidence reads 7"):
        VMIL(policy(), shown(), Discriminator(7), length=L)
    with pytest.raises(ValueError, match="judged='features'"):
        VMIL(policy("pixels"), shown("pixels"), length=L, judged="observations")
    with pytest.raises(ValueError, match="judged"):
        VMIL(policy(), shown(), length=L, judged="pixels")  # type: ignore[arg-type]
    for name in ("share", "discount", "mixing"):
        with pytest.raises(ValueError, match=name):
            VMIL(policy(), shown(), length=L, **{name: 1.5})
    discrete = Demonstrations.from_episodes(
        [Episode(np.zeros((6, O), np.float32), np.zeros(5, np.int64))], spaces.Discrete(2)
    )
    with pytest.raises(ValueError, match="actions are in"):
        VMIL(policy(), discrete, length=L)
    with pytest.raises(ValueError, match="needs a guide"):
        given = policy("latent")
        BeliefPolicy(given.readings, given.action_space, given.world, None, given.actor)
    with pytest.raises(ValueError, match="use latent"):
        BeliefPolicy.observed(Toy("pixels").observation_space, Toy.action_space)


def test_a_policy_of_another_size_than_the_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="observations are"):
        learn(learner("pixels"), Toy("observed"), steps=30, batch_size=2, progress=False)
    assert not list(tmp_path.iterdir())
