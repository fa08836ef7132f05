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
from pyrocontrol.inference.control.evaluation import evaluation
from pyrocontrol.inference.control.first_form import FirstSoftActorCritic
from pyrocontrol.inference.control.loop import learn
from pyrocontrol.inference.control.soft_control import SoftActorCritic
from pyrocontrol.inference.control.soft_q_learning import SoftQLearning
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.models import GaussianPrior
from soft_learners import tensors
from tanh_gaussian import TanhGaussian


class Point(gymnasium.Env[Any, Any]):
    """A point on a line that should be at 0: x' = x + a / 20, reward -|x'|, for `length` steps; beyond 2 it is lost.

    Bounds of the action are -5..10, of which a normalised action of -1/3 stands still.
    """

    def __init__(self, length: int = 12, noise: bool = False, seen: Any = None, acted: Any = None) -> None:
        self.observation_space: spaces.Space[Any] = seen or spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: spaces.Space[Any] = acted or spaces.Box(-5.0, 10.0, (1,), np.float64)
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


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(*pair) for pair in zip(tensors(first), tensors(second), strict=True))


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


class Latent(gymnasium.ActionWrapper[Any, Any, Any]):
    latent = True

    def __init__(self, env: Any, size: int = 1) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def action(self, action: Any) -> Any:
        return np.asarray(action, np.float64)


@pytest.mark.parametrize(
    ("latent", "action", "expected"),
    [(False, -1.0, -5.0), (False, 1.0, 10.0), (False, 0.2, 4.0), (True, 3.5, 3.5)],
    ids=str,
)
def test_actions_are_mapped_to_the_bounds_and_latents_are_not(latent: bool, action: float, expected: float) -> None:
    env = Point()
    wrapped = gymnasium.wrappers.TimeLimit(Latent(env) if latent else env, 100)  # what is marked may be inside
    learn(Recorder(action, squash=not latent), wrapped, steps=3, **OPTIONS)
    np.testing.assert_allclose(env.actions, expected, rtol=1e-6)


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


@pytest.mark.parametrize("kind", [SoftActorCritic, FirstSoftActorCritic, SoftQLearning])
def test_it_learns_to_stay(kind: Any) -> None:
    torch.manual_seed(0)
    policy = TanhGaussian(2, 1, hidden=16)
    options: dict[str, Any] = {"hidden": (32, 32), "lr": 7e-3, "discount": 0.9, "smoothing": 0.05, "target_every": 1}
    learner = kind(policy, 2, 1, temperature=0.1, **options | ({"particles": 8} if kind is SoftQLearning else {}))
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


# What is seen of it


def test_what_is_logged_and_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    given: dict[str, Any] = OPTIONS | {"progress": True, "out": tmp_path}
    result = learn(make(), Point(), steps=60, log=lambda *values: logged.append(values), **given)
    assert all(isinstance(value, float) for _, values in logged for value in values.values())
    assert [(step, values["return"]) for step, values in logged if "return" in values] == result.returns
    assert [(step, values["loss"]) for step, values in logged if "loss" in values] == result.losses
    assert {"alpha", "q", "critic_loss", "steps_per_second"} < set(logged[-1][1])
    assert all(("length" in values) == ("return" in values) for _, values in logged)
    lines = capfd.readouterr().err.splitlines()
    mean = sum(value for _, value in result.returns) / len(result.returns)
    assert lines[0] == "step 0/60" and lines[-1].startswith(f"step 60/60  mean return {mean:.4g}  loss ")
    learn(make(), Point(), steps=60, **given)
    assert capfd.readouterr().err == "step 60/60: finished before; nothing to do\n"


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


@pytest.mark.parametrize("kept", [True, False])
def test_an_episode_longer_than_the_replay_goes_on(tmp_path: Path, kept: bool) -> None:
    """By the actions that the checkpoint holds; one of version 0.1 held none, and a new episode begins."""

    def train(steps: int, out: Path | None) -> Any:
        learner = make()
        learn(learner, Point(length=40), steps=steps, out=out, **OPTIONS | {"replay": 10, "checkpoint_every": 7})
        return learner

    straight = train(60, None)
    train(31, tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = checkpoint.read(path)
    assert content["episodes"]["forgotten"].shape == (21, 1)
    if not kept:
        content["episodes"].pop("forgotten")
        torch.save(content, path)
        with pytest.warns(
            RuntimeWarning, match="neither replay nor checkpoint hold all actions to step 31 of episode 0"
        ):
            train(60, tmp_path)
        return
    for steps in (36, 60):
        resumed = train(steps, tmp_path)
    assert same(straight, resumed)


def test_a_replay_that_was_changed_is_refused(tmp_path: Path) -> None:
    learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)
    path, learner = tmp_path / "replay-0.bin", make()
    state = [tensor.clone() for tensor in tensors(learner)]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="replay-0.bin is damaged: transitions 0 to 39 are not those that were written"
    ):
        learn(learner, Point(), steps=50, out=tmp_path, **OPTIONS)
    assert all(map(torch.equal, tensors(learner), state))


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
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_run_that_is_stopped_saves_first(sent: signal.Signals, tmp_path: Path) -> None:
    class Stopped(Recorder):
        def update(self, batch: Any) -> dict[str, Tensor]:
            if len(self.batches) == 9:
                signal.raise_signal(sent)
            return super().update(batch)

    saved: list[int] = []
    before = signal.signal(
        signal.SIGTERM, lambda *_: saved.append(load_checkpoint(tmp_path / "checkpoint.pt", Stopped()))
    )
    try:
        result = learn(Stopped(), Point(), steps=100, out=tmp_path, **OPTIONS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.interrupted and result.step == 30
    assert saved == ([30] if sent == signal.SIGTERM else [])  # which came again when all was done
    assert load_checkpoint(tmp_path / "checkpoint.pt", Stopped()) == 30


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


def recorder(**given: Any) -> Any:
    learner = Recorder(squash=given.pop("squash", True))
    for name, value in given.items():
        setattr(learner, name, value)
    return learner


SHARED = Point()
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    # the environment
    (TypeError, "the actions must be a Box of floats in one row", {"env": Point(acted=box(0, 3, dtype=np.int64))}),
    (ValueError, "the actions have no bounds to scale to", {"env": Point(acted=box(-np.inf, 1))}),
    (ValueError, "acts with 1 numbers, the space .* is of another size", {"env": Point(acted=box(-1, 1, 2))}),
    (ValueError, "not a Box of the 2 numbers that the TanhGaussian takes", {"env": Point(seen=box(-1, 1, 3))}),
    (ValueError, "not a Box of the 2 numbers that the TanhGaussian takes", {"env": Point(seen=spaces.Discrete(2))}),
    (ValueError, "the environment takes bounded actions: squash=True", {"learner": recorder(squash=False)}),
    (ValueError, "takes latents of any size: the policy needs squash=False", {"env": Latent(Point())}),
    (ValueError, "latents are Box.*, not the 1 of", {"env": Latent(Point(), 2), "learner": recorder(squash=False)}),
    (TypeError, "one environment is acted in, not a vector", {"env": gymnasium.vector.SyncVectorEnv([Point])}),
    (ValueError, "evaluate runs episodes in the environment that is learnt in", {
        "env": gymnasium.wrappers.TimeLimit(SHARED, 5), "evaluate": evaluation(TanhGaussian(2, 1), SHARED),
    }),
    # the learner
    (TypeError, "learner must be a module such as SoftActorCritic, not int", {"learner": 3}),
    (TypeError, "a Linear is no learner such as SoftActorCritic: it has no policy", {"learner": nn.Linear(2, 1)}),
    (TypeError, "the policy of the Recorder is no module with parameters", {"learner": recorder(policy=None)}),
    (TypeError, "its update cannot be called", {"learner": recorder(update=None)}),
    # numbers
    (ValueError, "batch_size must be at least 1, not 0", {"batch_size": 0}),
    (ValueError, "replay must be at least 1, not 0", {"replay": 0}),
    (ValueError, "start must be at least 0, not -1", {"start": -1}),
    (ValueError, "steps must be at least 1, not 0", {"steps": 0}),
    (ValueError, "checkpoint_every must be at least 1, not 0", {"checkpoint_every": 0}),
    (ValueError, "seed must be less than 2\\*\\*32", {"seed": 2**32}),
    (TypeError, "steps must be a whole number, not 5.0", {"steps": 5.0}),
    (TypeError, "seed must be a whole number, not True", {"seed": True}),
    (TypeError, "start must be a whole number, not None", {"start": None}),
    (TypeError, "unexpected keyword argument 'stepz'", {"stepz": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "given"), BAD, ids=range(len(BAD)))
def test_what_makes_no_sense_is_refused_at_once(
    error: type[Exception], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    given = {"learner": make(), "env": Point(), "steps": 5} | OPTIONS | given
    with pytest.raises(error, match=message):
        learn(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists() and not getattr(given["env"].unwrapped, "seeds", ())


def test_what_cannot_be_evaluated_is_refused() -> None:
    for env, policy, episodes, error, message in (
        (Point(seen=box(-1, 1, 3)), make().policy, 1, ValueError, "not a Box of the 2 numbers"),
        (
            Point(),
            Hierarchy([make().policy]),
            1,
            ValueError,
            "the hierarchy acts in .*, the environment in .*: make it with action_space=env.action_space",
        ),
        (Point(), nn.Linear(2, 1), 1, TypeError, "a Linear is no policy that acts with normalised actions: no observ"),
        (Point(), make().policy, 2.5, TypeError, "episodes must be a whole number, not 2.5"),
    ):
        with pytest.raises(error, match=message):
            evaluation(policy, env, episodes=episodes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("what", "value"), [("observation", math.nan), ("reward", math.inf)])
def test_numbers_of_the_environment_are_finite(tmp_path: Path, what: str, value: float) -> None:
    class Bad(Point):
        def step(self, action: Any) -> Any:
            self.gives = {what: value} if len(self.actions) == 24 else {}
            return super().step(action)

    with pytest.raises(FloatingPointError, match=f"the {what} is .*{value}.*\nat step 25, episode 2; .*holds all"):
        learn(make(), Bad(), steps=40, out=tmp_path, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", make()) == 24


def test_what_is_given_can_be_kept() -> None:
    class Rewardless(Point):
        def step(self, action: Any) -> Any:
            return self.observe(), None, False, False, {}

    env = Point()
    env.gives = {"observation": 1e60}
    for learner, given, error, message in (
        (Recorder(), env, FloatingPointError, "observation is .*, not finite in float32"),
        (Recorder(), Rewardless(), TypeError, "the reward is None, not a number"),
        (Recorder(math.nan), Point(), FloatingPointError, r"the policy's action is \[nan\]\nat step 1, episode 0$"),
        (recorder(update=lambda batch: {}), Point(), TypeError, "update must return a critic_loss, not nothing"),
    ):
        with pytest.raises(error, match=message):
            learn(learner, given, steps=30, **OPTIONS)


@pytest.mark.parametrize("size", [1, 3])  # one would broadcast
def test_observations_keep_their_shape(tmp_path: Path, size: int) -> None:
    class Bad(Point):
        def observe(self) -> np.ndarray:
            return np.zeros(size) if len(self.actions) == 25 else super().observe()

    message = rf"observation has shape \[{size}\], not \[2\]\nat step 25, episode 2; .*holds"
    with pytest.raises(ValueError, match=message):
        learn(make(), Bad(), steps=40, out=tmp_path, **OPTIONS)
    assert load_checkpoint(tmp_path / "checkpoint.pt", make()) == 24


def test_a_learner_that_diverges_is_not_saved(tmp_path: Path) -> None:
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


def test_numbers_may_be_numpys_and_no_update_is_no_surprise() -> None:
    steps: Any = np.int64(20)
    with pytest.warns(UserWarning, match="steps=20 with start=20: nothing is learnt yet") as caught:
        assert learn(make(), Point(), steps=steps, **OPTIONS).losses == []
    assert caught[0].filename == __file__


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    learn(make(), Point(), steps=30, out=tmp_path, **OPTIONS)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    learner = make(discount=0.5)
    state = [tensor.clone() for tensor in tensors(learner)]
    because = r"is a checkpoint of another model: its SoftActorCritic is\ndiscount=0.99\nand this one is\ndiscount=0.5$"
    with pytest.raises(ValueError, match=because):
        learn(learner, Point(), steps=40, out=tmp_path, **OPTIONS)
    lists = r"SoftActorCritic is\nhidden=\(16,\)\nand this one is\nhidden=\(8, 4\)$"
    with pytest.raises(ValueError, match=lists):
        learn(make(hidden=(8, 4)), Point(), steps=40, out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"was made with replay=1000, not 30; pass resume=False"):
        learn(learner, Point(), steps=40, out=tmp_path, **OPTIONS | {"replay": 30})
    assert all(map(torch.equal, tensors(learner), state))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "replay-0.bin").unlink()
    with pytest.raises(ValueError, match=r"belongs to .*replay-0\.bin, which is not there"):
        learn(make(), Point(), steps=40, out=tmp_path, **OPTIONS)
    content = checkpoint.read(tmp_path / "checkpoint.pt")
    content.pop("episodes")
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no such checkpoint as is needed: it has no episodes; pass resume=False"):
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
