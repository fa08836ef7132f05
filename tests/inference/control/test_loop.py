"""The loop of acting and learning: what reaches the environment and the replay, stopping and resuming, bad input."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformReward
from torch import Tensor, nn

from pyrocontrol.envs import Hierarchy, LatentActionEnv
from pyrocontrol.guides import FlowPolicy
from pyrocontrol.inference import load_checkpoint
from pyrocontrol.inference.control.loop import evaluation, learn
from pyrocontrol.inference.control.soft_control import SoftActorCritic
from pyrocontrol.inference.control.soft_q_learning import SoftQLearning
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.models import GaussianPrior
from tanh_gaussian import TanhGaussian


class Point(gymnasium.Env[Any, Any]):
    """A point on a line that should be at 0: x' = x + a / 20, reward -|x'|, for `length` steps; beyond 2 it is lost.

    Bounds of the action are -5..10, of which a normalised action of -1/3 stands still.
    """

    def __init__(self, length: int = 12, noise: bool = False) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: spaces.Space[Any] = spaces.Box(-5.0, 10.0, (1,), np.float64)
        self.length, self.noise = length, noise
        self.seeds: list[int | None] = []
        self.actions: list[float] = []
        self.fails_at: int | None = None
        self.gives: dict[str, float] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.steps, self.x = 0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        noise = np.random.default_rng().normal() if self.noise else 0.0  # no seed reaches it
        return np.array([self.x, noise + self.gives.get("observation", 0.0)])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.fails_at is not None and len(self.actions) >= self.fails_at:
            raise RuntimeError("the simulator gave up")
        self.actions.append(float(action[0]))
        self.steps, self.x = self.steps + 1, self.x + float(action[0]) / 20
        reward = -abs(self.x) + self.gives.get("reward", 0.0)
        return self.observe(), reward, abs(self.x) > 2, self.steps >= self.length, {}


def make(**options: Any) -> SoftActorCritic:
    torch.manual_seed(11)
    return SoftActorCritic(TanhGaussian(2, 1, hidden=16), 2, 1, **{"hidden": (16,), "lr": 3e-3} | options)


OPTIONS: dict[str, Any] = {"batch_size": 16, "replay": 1000, "start": 20, "progress": False, "log_every": 10}


def state_of(learner: nn.Module) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in learner.state_dict().items() if isinstance(value, Tensor)}
    optimizer = learner.get_extra_state()["optimizer"]["state"]
    return state | {f"adam.{i}.{n}": v.clone() for i, entry in optimizer.items() for n, v in entry.items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = state_of(first), state_of(second)
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


# What reaches the environment and the replay


class Recorder(nn.Module):
    """A learner that only looks at what it is given."""

    observation_size, action_size = 2, 1

    def __init__(self, action: float = 0.2, squash: bool = True):
        super().__init__()
        self.policy = TanhGaussian(2, 1, squash=squash)
        self.action = action
        self.batches: list[Any] = []

    def act(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
        return np.array([self.action], np.float32)

    def update(self, batch: Any) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"critic_loss": torch.tensor(1.0)}


def test_actions_are_mapped_affinely_to_the_bounds() -> None:
    for action, expected in ((-1.0, -5.0), (1.0, 10.0), (0.2, 4.0)):
        env = Point()
        learn(Recorder(action), env, steps=3, **OPTIONS)
        np.testing.assert_allclose(env.actions, expected, rtol=1e-6)


def test_latents_are_taken_as_they_are() -> None:
    class Latent(gymnasium.ActionWrapper[Any, Any, Any]):
        latent = True

        def action(self, action: Any) -> Any:
            return np.asarray(action, np.float64)

    env = Point()
    wrapped = gymnasium.wrappers.TimeLimit(Latent(env), 100)  # what is marked may be inside
    wrapped.env.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    learn(Recorder(3.5, squash=False), wrapped, steps=3, **OPTIONS)
    assert env.actions == [3.5] * 3


def test_an_environment_may_use_its_array_again() -> None:
    class Reusing(Point):
        array = np.zeros(2)

        def observe(self) -> np.ndarray:
            self.array[:] = self.x, self.steps
            return self.array

    learner = Recorder(0.2)
    learn(learner, Reusing(), steps=30, **OPTIONS)
    batch = learner.batches[-1]
    assert torch.equal(batch.next_observations[:, 1], batch.observations[:, 1] + 1)


def test_the_environment_gets_the_action_that_is_kept(tmp_path: Path) -> None:
    class Precise(Recorder):
        def act(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:
            return np.array([1 / 3])  # in double precision, as float32 does not hold it

    env = Point()
    learn(Precise(), env, steps=30, out=tmp_path, **OPTIONS)
    assert env.actions[0] != 5.0 and env.actions[0] == pytest.approx(5.0, abs=1e-6)
    again = Point()
    learn(Precise(), again, steps=40, out=tmp_path, **OPTIONS)  # would warn if the episode did not come back
    assert again.actions == env.actions[24:] + [env.actions[0]] * 10


def test_time_running_out_is_no_end_and_the_last_observation_counts() -> None:
    env, learner = Point(length=4), Recorder(-1 / 3)  # stands still
    learn(learner, env, steps=60, **OPTIONS)
    batch = learner.batches[-1]
    assert len(learner.batches) == 40
    assert not batch.terminated.any()
    torch.testing.assert_close(batch.next_observations, batch.observations)  # never the start of the next episode
    torch.testing.assert_close(batch.rewards, -batch.observations[:, 0].abs())


def test_the_end_of_the_task_is_one() -> None:
    learner = Recorder(1.0)  # half a unit to the right a step
    learn(learner, Point(), steps=60, **OPTIONS)
    batch = learner.batches[-1]
    torch.testing.assert_close(batch.terminated, (batch.next_observations[:, 0] > 2).float())
    assert 0 < batch.terminated.sum() < 16


def test_counts() -> None:
    env, learner = Point(length=5), Recorder(-1 / 3)
    result = learn(learner, env, steps=33, updates_per_step=3, **OPTIONS)
    assert result.step == 33 and len(env.actions) == 33 and len(learner.batches) == 3 * 13
    assert [step for step, _ in result.returns] == [5, 10, 15, 20, 25, 30]
    assert len(set(env.seeds)) == len(env.seeds) == 7 and not result.interrupted
    again = Point(length=5)
    learn(Recorder(-1 / 3), again, steps=33, **OPTIONS)
    assert again.seeds == env.seeds
    learn(Recorder(-1 / 3), again, steps=33, seed=1, **OPTIONS)
    assert not set(again.seeds[7:]) & set(env.seeds)


# Learning


@pytest.mark.parametrize("kind", ["sac", "first", "sql"])
def test_it_learns_to_stay(kind: str) -> None:
    torch.manual_seed(0)
    policy = TanhGaussian(2, 1, hidden=16)
    options: dict[str, Any] = {"hidden": (32, 32), "lr": 7e-3, "discount": 0.9, "smoothing": 0.05, "target_every": 1}
    learner: Any
    if kind == "sql":
        learner = SoftQLearning(policy, 2, 1, temperature=0.1, particles=8, **options)
    else:
        learner = SoftActorCritic(policy, 2, 1, first=kind == "first", temperature=0.1, **options)
    evaluate = evaluation(policy, Point(), episodes=10, deterministic=True)
    before = evaluate(0)["return"]
    result = learn(learner, Point(), steps=400, evaluate=evaluate, batch_size=64, start=100, progress=False)
    after = result.evaluations[-1][1]["return"]
    assert before < -5 and after > -3, (before, after)  # standing still costs 6 on average, the best way 2


def test_evaluation_repeats_itself_and_may_sample() -> None:
    policy = TanhGaussian(2, 1, hidden=16)
    sampled, likeliest = (evaluation(policy, Point(), episodes=3, deterministic=d) for d in (False, True))
    assert sampled(0) == sampled(1) and likeliest(0) == likeliest(1) and sampled(0) != likeliest(0)
    assert likeliest(0)["length"] <= 12


# Stopping and resuming


@pytest.mark.parametrize(
    ("stop", "replay"), [(77, 1000), (77, 50), (60, 50)], ids=["within", "replay full", "end of an episode"]
)
def test_a_resumed_run_comes_to_the_same_bits(tmp_path: Path, stop: int, replay: int) -> None:
    options = OPTIONS | {"replay": replay, "checkpoint_every": 30}
    straight, resumed = make(), make()
    evaluate = evaluation(straight.policy, Point(), episodes=1)
    expected = learn(straight, Point(), steps=110, **options)
    learn(resumed, Point(), steps=stop, out=tmp_path, evaluate=evaluate, evaluate_every=25, **options)
    resumed = make(lr=3e-3)
    torch.manual_seed(99)
    result = learn(resumed, Point(), steps=110, out=tmp_path, **options)
    assert same(straight, resumed)
    assert result.returns == expected.returns and result.step == 110
    assert result.losses == expected.losses


def test_a_killed_run_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    """What a process wrote into the replay after its last checkpoint does no harm."""
    options = OPTIONS | {"replay": 50, "checkpoint_every": 30, "out": tmp_path}
    straight, killed, resumed = make(), make(), make()
    learn(straight, Point(), steps=110, **OPTIONS | {"replay": 50})
    learn(killed, Point(), steps=90, **options)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    learn(killed, Point(), steps=118, **options)
    (tmp_path / "checkpoint.pt").write_bytes(kept)  # as if it had died on the way
    learn(resumed, Point(), steps=110, **options)
    assert same(straight, resumed)


def test_an_environment_that_raises_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    env, learner = Point(), make()
    env.fails_at = 57
    with pytest.raises(RuntimeError, match="the simulator gave up") as caught:
        learn(learner, env, steps=100, out=tmp_path, **OPTIONS)
    assert caught.value.__notes__ == [f"at step 58, episode 4; {tmp_path / 'checkpoint.pt'} holds all steps before"]
    other = make()
    assert load_checkpoint(tmp_path / "checkpoint.pt", other) == 57
    assert same(learner, other)
    env.fails_at = None
    result = learn(make(), env, steps=100, out=tmp_path, **OPTIONS)
    assert result.step == 100 and env.seeds[4] != env.seeds[5]
    assert [step for step, _ in result.returns][4] == 57 + 12  # the broken episode has no return


def test_an_environment_that_does_not_repeat_itself_begins_a_new_episode(tmp_path: Path) -> None:
    learn(make(), Point(noise=True), steps=30, out=tmp_path, **OPTIONS)
    env = Point(noise=True)
    # The noise reaches the actions, so that an episode may end early: which step that is varies.
    with pytest.warns(RuntimeWarning, match=r"did not come back to step \d+ of episode \d+: a new episode begins"):
        learn(make(), env, steps=40, out=tmp_path, **OPTIONS)
    assert len(set(env.seeds)) == 2


@pytest.mark.usefixtures("interruptible")
def test_control_c_saves_and_returns(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def update(self, batch: Any) -> dict[str, Tensor]:
            if len(self.batches) == 9:
                signal.raise_signal(signal.SIGINT)
            return super().update(batch)

    result = learn(Interrupted(), Point(), steps=100, out=tmp_path, **OPTIONS)
    assert result.interrupted and result.step == 30
    assert load_checkpoint(tmp_path / "checkpoint.pt", Interrupted()) == 30


@pytest.mark.usefixtures("interruptible")
def test_a_process_that_is_ended_saves_first(tmp_path: Path) -> None:
    class Ended(Recorder):
        def update(self, batch: Any) -> dict[str, Tensor]:
            if len(self.batches) == 9:
                signal.raise_signal(signal.SIGTERM)
            return super().update(batch)

    saved: list[int] = []
    before = signal.signal(
        signal.SIGTERM, lambda *_: saved.append(load_checkpoint(tmp_path / "checkpoint.pt", Ended()))
    )
    try:
        result = learn(Ended(), Point(), steps=100, out=tmp_path, **OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.interrupted and saved == [30]  # the signal came again when all was done


def test_episodes_side_by_side_are_the_episodes() -> None:
    made: list[Point] = []

    def body() -> Point:
        made.append(Point(length=5 + 3 * len(made)))
        return made[-1]

    policy = make().policy
    found = evaluation(policy, body, episodes=3, deterministic=True)(0)
    assert [env.seeds for env in made] == [[10_000], [10_001], [10_002]]
    alone = []
    for number in range(3):
        env = Point(length=5 + 3 * number)
        alone.append(evaluation(policy, env, episodes=1, deterministic=True, seed=10_000 + number)(0))
    for name, value in found.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 3)
    with pytest.raises(ValueError, match="must make a new environment at every call"):
        evaluation(policy, lambda: made[0], episodes=2)
    sampled = evaluation(policy, Point, episodes=3)
    assert sampled(0) == sampled(1) != evaluation(policy, Point, episodes=3, seed=1)(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_policy_is_evaluated_on_the_cpu_and_stays() -> None:
    policy = make().policy
    here = evaluation(policy, Point, episodes=3)(0)
    there = evaluation(policy.cuda(), Point, episodes=3)
    assert there(0) == pytest.approx(here)  # the same noise, drawn on the CPU
    assert all(weight.is_cuda for weight in policy.parameters())
    with torch.no_grad():  # what is copied is the policy as it is then
        for weight in policy.parameters():
            weight.zero_()
    assert there(0) != pytest.approx(here)


def test_evaluating_changes_nothing() -> None:
    plain, watched = make(), make()
    learn(plain, Point(), steps=60, **OPTIONS)
    evaluate = evaluation(watched.policy, Point(), episodes=2)
    result = learn(watched, Point(), steps=60, evaluate=evaluate, evaluate_every=20, **OPTIONS)
    assert same(plain, watched)
    assert [step for step, _ in result.evaluations] == [20, 40, 60]


def test_starting_anew_takes_the_place_of_the_old_run(tmp_path: Path) -> None:
    learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.glob("replay-*")] == ["replay-0.bin"]
    again, straight = make(), make()
    learn(again, Point(), steps=50, out=tmp_path, resume=False, **OPTIONS)
    assert [path.name for path in tmp_path.glob("replay-*")] == ["replay-1.bin"]
    learn(straight, Point(), steps=50, **OPTIONS)
    assert same(again, straight)
    policy = TanhGaussian(2, 1, hidden=16)
    assert load_checkpoint(tmp_path / "checkpoint.pt", policy) == 50  # the policy can be had alone
    assert torch.equal(policy.net[0].weight, again.policy.net[0].weight)


# Bad input


def box(low: float, high: float, size: int = 1, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, (size,), dtype)


@pytest.mark.parametrize(
    ("error", "message", "observed", "acted"),
    [
        (TypeError, "continuous control needs a Box of float actions, not Discrete", None, spaces.Discrete(3)),
        (TypeError, "continuous control needs a Box of float actions", None, box(0, 3, dtype=np.int64)),
        (ValueError, "actions must be bounded, or the environment marked latent", None, box(-np.inf, 1)),
        (ValueError, "actions must be bounded", None, box(-np.finfo(np.float32).max, np.finfo(np.float32).max)),
        (ValueError, "not the 1 numbers of the TanhGaussian", None, box(-1, 1, 2)),
        (ValueError, "not a Box of the 2 numbers that the TanhGaussian takes", box(-1, 1, 3), None),
        (ValueError, "not a Box of the 2 numbers that the TanhGaussian takes", spaces.Discrete(2), None),
    ],
    ids=["discrete", "whole numbers", "unbounded", "wide", "two actions", "three observations", "other observations"],
)
def test_environments_that_do_not_fit_are_refused_at_once(
    tmp_path: Path, error: type[Exception], message: str, observed: Any, acted: Any
) -> None:
    env = Point()
    env.observation_space, env.action_space = observed or env.observation_space, acted or env.action_space
    with pytest.raises(error, match=message):
        learn(make(), env, steps=5, out=tmp_path / "out", **OPTIONS)
    assert not env.seeds and not (tmp_path / "out").exists()
    with pytest.raises(error, match=message):
        evaluation(make().policy, env)


class Nothing(Recorder):
    def update(self, batch: Any) -> dict[str, Tensor]:
        return {}


def without(name: str) -> Any:
    learner = Recorder()
    setattr(learner, name, None)
    return learner


@pytest.mark.parametrize(
    ("message", "learner"),
    [
        ("a Linear is no learner such as SoftActorCritic: it has no policy", nn.Linear(2, 1)),
        ("the policy of the Recorder is no module with parameters", without("policy")),
        ("its update cannot be called", without("update")),
        ("its act cannot be called", without("act")),
    ],
    ids=["module", "policy", "update", "act"],
)
def test_what_is_no_learner_is_refused_at_once(tmp_path: Path, message: str, learner: Any) -> None:
    with pytest.raises(TypeError, match=message):
        learn(learner, Point(), steps=30, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_an_update_returns_its_loss() -> None:
    with pytest.raises(TypeError, match="update must return a critic_loss, not nothing"):
        learn(Nothing(), Point(), steps=30, **OPTIONS)


def test_evaluation_has_an_environment_of_its_own() -> None:
    learner, env = Recorder(), Point()
    wrapped = gymnasium.wrappers.TimeLimit(env, 5)
    with pytest.raises(ValueError, match="evaluate runs episodes in the environment that is learnt in"):
        learn(learner, wrapped, evaluate=evaluation(learner.policy, env), steps=30, **OPTIONS)
    assert not env.seeds


def test_squashing_goes_with_the_environment() -> None:
    with pytest.raises(ValueError, match="the environment takes bounded actions: squash=True"):
        learn(Recorder(squash=False), Point(), steps=5, **OPTIONS)
    env = Point()
    env.latent = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the environment takes latents of any size: the policy needs squash=False"):
        learn(Recorder(), env, steps=5, **OPTIONS)


def test_one_environment_at_a_time() -> None:
    envs = gymnasium.vector.SyncVectorEnv([Point])
    with pytest.raises(TypeError, match="env must be one Gymnasium environment, not SyncVectorEnv"):
        learn(make(), envs, steps=5, **OPTIONS)  # type: ignore[arg-type]
    envs.close()


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_of_the_environment_are_finite(tmp_path: Path, what: str, value: float) -> None:
    class Bad(Point):
        def step(self, action: Any) -> Any:
            self.gives = {what: value} if len(self.actions) == 24 else {}
            return super().step(action)

    with pytest.raises(
        FloatingPointError, match=f"the environment's {what} is .*{value}.* at step 25, episode 2; .*holds all"
    ):
        learn(make(), Bad(), steps=40, out=tmp_path, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", make()) == 24


def test_observations_and_rewards_are_numbers_that_can_be_kept() -> None:
    env = Point()
    env.gives = {"observation": 1e60}
    with pytest.raises(FloatingPointError, match="observation is .*, not finite in float32"):
        learn(Recorder(), env, steps=30, **OPTIONS)

    class Rewardless(Point):
        def step(self, action: Any) -> Any:
            return self.observe(), None, False, False, {}

    with pytest.raises(TypeError, match="the environment's reward is None, not a number"):
        learn(Recorder(), Rewardless(), steps=30, **OPTIONS)


@pytest.mark.parametrize("size", [1, 3])
def test_observations_keep_their_shape(tmp_path: Path, size: int) -> None:
    class Bad(Point):
        def observe(self) -> np.ndarray:
            return np.zeros(size) if len(self.actions) == 25 else super().observe()

    with pytest.raises(
        ValueError, match=rf"observation has shape \[{size}\], not \[2\] at step 25, episode 2; .*holds"
    ):
        learn(make(), Bad(), steps=40, out=tmp_path, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", make()) == 24


def test_an_evaluation_that_raises_leaves_a_checkpoint(tmp_path: Path) -> None:
    def evaluate(step: int) -> dict[str, float]:
        raise RuntimeError("nothing to see")

    with pytest.raises(RuntimeError, match="nothing to see"):
        learn(make(), Point(), steps=40, out=tmp_path, evaluate=evaluate, evaluate_every=25, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", make()) == 25


def test_numbers_of_the_learner_are_finite(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the policy's action is \[nan\] at step 1, episode 0"):
        learn(Recorder(math.nan), Point(), steps=5, **OPTIONS)

    class Diverged(Recorder):
        def update(self, batch: Any) -> dict[str, Tensor]:
            found = super().update(batch)
            with torch.no_grad():
                self.policy.net[0].bias.fill_(math.nan if len(self.batches) > 30 else 0.0)
            return found

    message = "the loss or a parameter is not finite at step 60; .*checkpoint.pt holds step 40"
    with pytest.raises(FloatingPointError, match=message):
        learn(Diverged(), Point(), steps=100, out=tmp_path, checkpoint_every=20, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", Recorder().policy) == 40


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("batch_size must be at least 1, not 0", {"batch_size": 0}),
        ("replay must be at least 1, not 0", {"replay": 0}),
        ("start must be at least 0, not -1", {"start": -1}),
        ("steps must be at least 1, not 0", {"steps": 0}),
        ("device nowhere cannot be used", {"device": "nowhere"}),
        (".*test_loop.py is a file, not a folder", {"out": Path(__file__) / "new"}),
        ("checkpoint_every must be at least 1, not 0", {"checkpoint_every": 0}),
        ("seed must be less than 2\\*\\*32", {"seed": 2**32}),
        ("evaluate_every is 5, but there is no evaluate to call", {"evaluate_every": 5}),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_arguments_out_of_range_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        learn(make(), Point(), **{"steps": 5} | OPTIONS | options)
    with pytest.raises(TypeError, match="learner must be a module such as SoftActorCritic, not int"):
        learn(3, Point(), steps=5, **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": math.nan},
        {"steps": 5.5},
        {"steps": 5.0},
        {"batch_size": 2.5},
        {"seed": 1.5},
        {"seed": True},
        {"start": None},
    ],
    ids=str,
)
def test_numbers_are_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    env = Point()
    with pytest.raises(TypeError, match=f"{name} must be a whole number, not {value}"):
        learn(make(), env, out=tmp_path / "out", **{"steps": 5} | OPTIONS | options)
    assert not env.seeds and not (tmp_path / "out").exists()
    with pytest.raises(TypeError, match="episodes must be a whole number, not 2.5"):
        evaluation(make().policy, env, episodes=2.5)  # type: ignore[arg-type]
    assert learn(make(), env, steps=np.int64(5), **OPTIONS).step == 5  # type: ignore[arg-type]


def test_no_update_is_no_surprise() -> None:
    with pytest.warns(UserWarning, match="steps=20 with start=20: nothing is learnt yet"):
        assert not learn(make(), Point(), steps=20, **OPTIONS).losses


def test_evaluate_is_a_function_and_policies_have_sizes() -> None:
    with pytest.raises(TypeError, match="evaluate must be a function of the number of steps, got 5"):
        learn(make(), Point(), steps=5, evaluate=5, **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Hierarchy is no policy that acts with normalised actions: no squash"):
        evaluation(Hierarchy([make().policy]), Point())


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    learn(make(), Point(), steps=30, out=tmp_path, **OPTIONS)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    learner = make(discount=0.5)
    state = state_of(learner)
    because = r"is a checkpoint of another model: its SoftActorCritic is\ndiscount=0.99\nand this one is\ndiscount=0.5$"
    with pytest.raises(ValueError, match=because):
        learn(learner, Point(), steps=40, out=tmp_path, **OPTIONS)
    lists = r"SoftActorCritic is\nhidden=\(16,\)\nand this one is\nhidden=\(8, 4\)$"
    with pytest.raises(ValueError, match=lists):
        learn(make(hidden=(8, 4)), Point(), steps=40, out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"was made with seed=0, not 1; pass resume=False"):
        learn(learner, Point(), steps=40, out=tmp_path, seed=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"was made with replay=1000, not 30; pass resume=False"):
        learn(learner, Point(), steps=40, out=tmp_path, **OPTIONS | {"replay": 30})
    with pytest.raises(ValueError, match=r"is at step 30, beyond steps=20; pass resume=False"):
        learn(learner, Point(), steps=20, out=tmp_path, **OPTIONS)
    assert all(torch.equal(value, state[name]) for name, value in state_of(learner).items())
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "replay-0.bin").unlink()
    with pytest.raises(ValueError, match=r"belongs to .*replay-0\.bin, which is not there"):
        learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)
    content = checkpoint.read(tmp_path / "checkpoint.pt")
    content.pop("episodes")
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no such checkpoint as is needed: it has no episodes; pass resume=False"):
        learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)
    (tmp_path / "checkpoint.pt").write_bytes(before[:500])
    with pytest.raises(ValueError, match="is truncated or not a checkpoint"):
        learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)


def test_a_run_goes_on_in_the_environment_it_was_begun_in(tmp_path: Path) -> None:
    def maze(steps: int | None = None, **given: Any) -> Any:
        return gymnasium.make("pyrocontrol/PointMaze-v0", max_episode_steps=steps, **given)

    def level(policy: FlowPolicy, **given: Any) -> Any:
        return LatentActionEnv(maze(goal=1), policy, **given)

    learner = SoftActorCritic(FlowPolicy(4, 2, hidden=(8,)), 4, 2)
    learn(learner, maze(goal=1), steps=5, out=tmp_path / "a", **OPTIONS)
    with pytest.raises(
        ValueError, match="was made with env=pyrocontrol/PointMaze-v0 {'goal': 1} .*, not .* {'goal': 2} "
    ):
        learn(learner, maze(goal=2), steps=9, out=tmp_path / "a", **OPTIONS)
    for wrong in (RescaleAction(maze(goal=1), -5, 5), TransformReward(maze(goal=1), float), maze(goal=1, steps=7)):
        with pytest.raises(ValueError, match="was made with env=pyrocontrol/PointMaze-v0 {'goal': 1} of 300 steps"):
            learn(learner, wrong, steps=9, out=tmp_path / "a", **OPTIONS)
    learn(learner, maze(goal=1, render_mode="rgb_array"), steps=9, out=tmp_path / "a", **OPTIONS)
    upper = SoftActorCritic(FlowPolicy(4, 2, hidden=(8,), squash=False), 4, 2, prior=GaussianPrior(2))
    policy, other = FlowPolicy(4, 2), FlowPolicy(4, 2)
    learn(upper, level(policy), steps=5, out=tmp_path / "b", **OPTIONS)
    for wrong in (level(other), level(policy, hold=2), TransformReward(level(policy), float)):
        with pytest.raises(ValueError, match="was made with env=pyrocontrol/PointMaze-v0 .* through "):
            learn(upper, wrong, steps=9, out=tmp_path / "b", **OPTIONS)
    learn(upper, level(policy), steps=9, out=tmp_path / "b", **OPTIONS)


def test_an_environment_made_with_objects_is_found_again(tmp_path: Path) -> None:
    class Goal:
        def __init__(self, at: float) -> None:
            self.at = at

    def body(goal: Goal, shape: Any) -> Any:
        spec = gymnasium.envs.registration.EnvSpec(
            "Point-v0", entry_point=lambda **_: Point(), kwargs={"goal": goal, "shape": shape}
        )
        return gymnasium.make(spec)

    for steps in (30, 40):
        learn(make(), body(Goal(1.0), lambda x: x), steps=steps, out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"was made with env=Point-v0 .*Goal\(at=1.0\).*, not .*Goal\(at=2.0\)"):
        learn(make(), body(Goal(2.0), lambda x: x), steps=50, out=tmp_path, **OPTIONS)


def test_a_latent_kept_for_an_episode(tmp_path: Path) -> None:
    class Watched(SoftActorCritic):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__(FlowPolicy(2, 1, hidden=(8,)), 2, 1, hidden=(8,), fixed_latent=True)
            self.seen: list[float] = []

        def act(self, observation: Any, deterministic: bool = False) -> Any:
            assert self.latent is not None
            self.seen.append(self.latent.item())
            action = super().act(observation, deterministic)
            inputs = torch.as_tensor(observation, dtype=torch.float32)
            assert torch.allclose(self.policy.latents(torch.as_tensor(action), inputs), self.latent, atol=1e-3)
            return action

    whole = Watched()
    learn(whole, Point(), steps=30, **OPTIONS)
    assert whole.seen[0] == whole.seen[1] and 3 <= len(set(whole.seen)) < 15  # of at most 12 steps
    for steps in (17, 30):
        stopped = Watched()
        learn(stopped, Point(), steps=steps, out=tmp_path, **OPTIONS)
    assert stopped.seen == whole.seen[17:]


def test_a_latent_can_be_kept_by_flows_only() -> None:
    with pytest.raises(ValueError, match="a TanhGaussian has no latent that could be fixed for an episode"):
        SoftActorCritic(TanhGaussian(2, 1), 2, 1, fixed_latent=True)
