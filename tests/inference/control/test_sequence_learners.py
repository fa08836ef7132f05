"""Learners with a memory, from images and dicts: what they are given, stopping and resuming, evaluating, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from pyrocontrol.inference import ReplayOptions, SequenceBatch, SequenceReplay, evaluation, learn, learn_together
from pyrocontrol.inference.control import ring
from pyrocontrol.inference.training import checkpoint

IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
JOINTS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
SPACE = spaces.Dict(pixels=IMAGE, joints=JOINTS)


class Lamp(gymnasium.Env[Any, Any]):
    """A number x that should be at 0 and is seen as brightness: x' = x + a / 20, for 12 steps; beyond 2 it is lost."""

    def __init__(self, seen: Any = SPACE, acted: Any = None) -> None:
        self.observation_space = seen
        self.action_space = acted or spaces.Box(-5.0, 10.0, (1,), np.float64)
        self.gives: dict[int, dict[str, Any]] = {}  # in place of what is seen after so many steps
        self.taken = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.x = 0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}

    def observe(self) -> Any:
        pixels = np.full(IMAGE.shape, min(max(128 + 60 * self.x, 0), 255), np.uint8)
        parts = {"joints": np.array([self.x]), "pixels": pixels}  # the joints in double precision
        parts |= self.gives.get(self.taken, {}) if self.steps else {}
        return parts if isinstance(self.observation_space, spaces.Dict) else parts["pixels"]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.taken += 1
        self.steps, self.x = self.steps + 1, self.x + float(action[0]) / 20
        return self.observe(), -abs(self.x), abs(self.x) > 2, self.steps >= 12, {}


class Agent(nn.Module):
    """A GRU over what is seen, which chooses actions in the environment's bounds: a controller."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.pixels = not isinstance(space, spaces.Dict)
        self.cell, self.head = nn.GRUCell(48 if self.pixels else 49, 8), nn.Linear(8, 1)

    def inputs(self, observations: Any) -> Tensor:
        """Return ``[..., X]``."""
        if self.pixels:
            return torch.as_tensor(observations).flatten(-3) / 255
        pixels, joints = torch.as_tensor(observations["pixels"]), torch.as_tensor(observations["joints"])
        return torch.cat([pixels.flatten(-3) / 255, joints.float()], -1)

    @torch.no_grad()
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        inputs = self.inputs(observation)
        alone = inputs.dim() == 1
        inputs = inputs.reshape(-1, inputs.shape[-1])
        known = inputs.new_zeros(len(inputs), 8) if state is None else state
        known = torch.where(torch.as_tensor(episode_start).reshape(-1, 1), 0.0, known)
        state = self.cell(inputs, known)
        actions = 2.5 + 7.5 * self.head(state).tanh().double().numpy()
        return (actions[0] if alone else actions), state


class Sequential(nn.Module):
    """Learns to tell x from what its GRU remembers, and acts with it and noise; only ``learn`` knows of episodes."""

    action_size = 1

    def __init__(self, space: Any = SPACE, length: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.observation_space, self.length = space, length
        self.policy = Agent(space)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)
        self.remembered = torch.zeros(1, 8)
        self.seen: list[Any] = []
        self.batches: list[Any] = []

    def make_replay(self, capacity: int, **options: Unpack[ReplayOptions]) -> SequenceReplay:
        return SequenceReplay(capacity, self.observation_space, self.action_size, self.length, **options)

    def begin(self, seed: int) -> None:
        self.remembered = torch.zeros(1, 8)

    @torch.no_grad()
    def act(self, observation: Any, deterministic: bool = False) -> np.ndarray:
        self.seen.append(observation)
        self.remembered = self.policy.cell(self.policy.inputs(observation).unsqueeze(0), self.remembered)
        return (self.policy.head(self.remembered)[0] + 0.3 * torch.randn(1)).tanh().numpy()

    def update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        self.batches.append(batch)
        state, loss = torch.zeros(len(batch.actions), 8), torch.zeros(())
        for inputs, action in zip(
            self.policy.inputs(batch.observations).unbind(1), batch.actions.unbind(1), strict=True
        ):
            state = self.policy.cell(inputs, state)
            loss = loss + (self.policy.head(state) - action).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"critic_loss": loss.detach()}

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "remembered": self.remembered}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.remembered = state["remembered"]


OPTIONS: dict[str, Any] = {"batch_size": 4, "replay": 60, "start": 20, "progress": False, "log_every": 10}


def same(one: Sequential, other: Sequential) -> bool:
    states = [
        torch.utils._pytree.tree_leaves((dict(each.state_dict()), each.get_extra_state())) for each in (one, other)
    ]
    return all(
        torch.equal(*pair) if isinstance(pair[0], Tensor) else pair[0] == pair[1] for pair in zip(*states, strict=True)
    )


@pytest.mark.parametrize("space", [IMAGE, SPACE], ids=["image", "dict"])
def test_images_and_dicts_reach_the_learner_as_they_are(space: Any) -> None:
    learner = Sequential(space)
    result = learn(learner, Lamp(space), steps=60, **OPTIONS)
    assert result.step == 60 and len(result.returns) >= 4 and len(learner.batches) == 40
    batch, seen = learner.batches[-1], learner.seen[-1]
    pairs = {"": (seen, batch.observations)} if space is IMAGE else {n: (seen[n], batch.observations[n]) for n in seen}
    for name, (one, drawn) in pairs.items():
        box = SPACE[name] if name else IMAGE
        assert one.dtype == box.dtype and one.shape == box.shape
        assert drawn.numpy().dtype == box.dtype and drawn.shape == (4, 5, *box.shape)
    if space is SPACE:  # each action leads from its observation to the next
        joints = batch.observations["joints"][..., 0]
        moved = (-5 + 7.5 * (batch.actions[..., 0] + 1)) / 20
        torch.testing.assert_close(joints[:, 1:], joints[:, :-1] + moved[:, :-1])
        torch.testing.assert_close(batch.rewards[:, :-1], -joints[:, 1:].abs())


@pytest.mark.parametrize(("stop", "replay"), [(77, 1000), (77, 30), (60, 30)], ids=["within", "replay full", "early"])
def test_a_resumed_run_comes_to_the_same_bits(tmp_path: Path, stop: int, replay: int) -> None:
    """What it remembers of its episode, too; evaluating on the way changes nothing."""
    options = OPTIONS | {"replay": replay, "checkpoint_every": 30}
    straight, stopped, resumed = Sequential(), Sequential(), Sequential()
    expected = learn(straight, Lamp(), steps=110, **options)
    evaluate = evaluation(stopped.policy, Lamp(), episodes=2)
    learn(stopped, Lamp(), steps=stop, out=tmp_path, evaluate=evaluate, evaluate_every=7, **options)
    torch.manual_seed(99)
    result = learn(resumed, Lamp(), steps=110, out=tmp_path, **options)
    assert same(straight, resumed) and result.returns == expected.returns and result.losses == expected.losses
    assert straight.remembered.abs().sum() > 0


def test_a_killed_run_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    options = OPTIONS | {"replay": 30, "checkpoint_every": 30, "out": tmp_path}
    straight, killed, resumed = Sequential(), Sequential(), Sequential()
    learn(straight, Lamp(), steps=110, **OPTIONS | {"replay": 30})
    learn(killed, Lamp(), steps=90, **options)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    learn(killed, Lamp(), steps=119, **options)
    (tmp_path / "checkpoint.pt").write_bytes(kept)  # as if it had died on the way
    learn(resumed, Lamp(), steps=110, **options)
    assert same(straight, resumed)


def test_an_episode_that_does_not_come_back_begins_anew(tmp_path: Path) -> None:
    """Where the last observation alone is another one, too; windows do not reach from one episode into the next."""
    env, learner = Lamp(), Sequential()
    env.gives = {27: {"joints": np.array([0.5])}}
    learn(Sequential(), env, steps=27, out=tmp_path, **OPTIONS)
    with pytest.warns(RuntimeWarning, match=r"did not come back to step \d of episode \d: a new episode begins"):
        learn(learner, Lamp(), steps=60, out=tmp_path, **OPTIONS)
    joints, first = (
        torch.cat(parts) for parts in zip(*((b.observations["joints"], b.first) for b in learner.batches), strict=True)
    )
    assert first[:, 0].any() and not first[:, 1:].any() and not (joints == 0.5).any()


@pytest.mark.parametrize("space", [IMAGE, SPACE], ids=["image", "dict"])
def test_a_controller_is_evaluated_with_a_state_for_each_episode(space: Any) -> None:
    agent = Sequential(space).policy
    found = evaluation(agent, lambda: Lamp(space), episodes=3)(0)
    alone = [evaluation(agent, Lamp(space), episodes=1, seed=10_000 + number)(0) for number in range(3)]
    for name, value in found.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 3)
    assert evaluation(agent, Lamp(space), episodes=3)(0) == pytest.approx(found)


def test_a_controller_may_be_told_how_an_episode_begins() -> None:
    class Told:
        """Counts its steps from what the reset tells."""

        def initial_state(self, info: dict[str, Any]) -> int:
            return int(info["at"])

        def predict(self, observation: Any, state: Any = None, *_: Any) -> Any:
            counted.append(state)
            return np.array([0.0]), state + 1

    class Telling(Lamp):
        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return super().reset(seed=seed)[0], {"at": seed}

    for env in (Telling(), Telling):
        counted: list[int] = []
        evaluation(Told(), env, episodes=2, seed=100)(0)  # type: ignore[arg-type]
        assert counted == [*range(100, 112), *range(101, 113)]


@pytest.mark.parametrize(("rate", "at"), [(0.2, [25, 30]), (0.7, [22, 23, 25, 26, 28, 29, 30, 32, 33]), (1.5, None)])
def test_updates_every_few_steps(rate: float, at: list[int] | None, tmp_path: Path) -> None:
    """Of 13 steps after the start each brings its share; a run that goes on counts on."""
    steps: list[int] = []
    for stop in (27, 33):
        learner = Sequential()
        update = learner.update

        def counted(
            batch: Any, learner: Any = learner, update: Any = update, first: int = 27 if stop == 33 else 0
        ) -> Any:
            steps.append(first + len(learner.seen))
            return update(batch)

        learner.update = counted  # type: ignore[method-assign]
        learn(learner, Lamp(), steps=stop, out=tmp_path, updates_per_step=rate, **OPTIONS)
    assert steps == at if at is not None else len(steps) == 19
    with pytest.raises(ValueError, match=r"was made with updates_per_step=.*, not 1; pass resume=False"):
        learn(learner, Lamp(), steps=40, out=tmp_path, **OPTIONS)


class Vectors(Sequential):
    """One that says what it takes, and not what it learns from."""

    make_replay: Any = property()


BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"observations are Box\(0, 255, \(8, 8, 3\), uint8\), not the Box.*that the Sequential takes", {
        "learner": Sequential(IMAGE), "env": Lamp(spaces.Box(0, 255, (8, 8, 3), np.uint8))}),
    (ValueError, r"observations are Box\(0.0, 1.0, \(4, 4, 3\), float32\), not the Box\(0, 255", {
        "learner": Sequential(IMAGE), "env": Lamp(spaces.Box(0, 1, (4, 4, 3), np.float32))}),
    (ValueError, "observations are Dict.*, not the Dict", {"env": Lamp(spaces.Dict(image=IMAGE, joints=JOINTS))}),
    (ValueError, "observations are Dict.*, not the Box", {"learner": Sequential(IMAGE)}),
    (TypeError, "observations must be a Box or a Dict of Boxes, not Discrete", {
        "learner": Sequential(spaces.Discrete(3))}),
    (ValueError, "acts with 1 numbers, the space .* is of another size", {"env": Lamp(acted=spaces.Box(-1, 1, (2,)))}),
    (TypeError, "it has no make_replay", {"learner": Vectors()}),
    (ValueError, "updates_per_step must be positive and finite, not 0", {"updates_per_step": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "given"), BAD, ids=range(len(BAD)))
def test_what_makes_no_sense_is_refused_at_once(
    error: type[Exception], message: str, given: dict[str, Any], tmp_path: Path
) -> None:
    given = {"learner": Sequential(), "env": Lamp(), "steps": 5} | OPTIONS | given
    with pytest.raises(error, match=message):
        learn(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists() and not given["env"].taken


def test_a_replay_larger_than_memory_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "available_memory", lambda: 2000)
    env = Lamp()
    with pytest.raises(ValueError, match=r"more than the 1.86e-06 GiB of memory that are left: .*of learn, an out"):
        learn(Sequential(), env, steps=30, **OPTIONS)
    assert not env.taken
    assert learn(Sequential(), env, steps=30, out=tmp_path, **OPTIONS).step == 30


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (
            {"pixels": np.zeros((4, 4, 1), np.uint8)},
            r"the observation's 'pixels' has shape \[4, 4, 1\], not \[4, 4, 3\]",
        ),
        ({"pixels": np.zeros((4, 4, 3))}, "the observation's 'pixels' is of float64, not uint8"),
        ({"more": 1}, r"the observation is \['joints', 'pixels', 'more'\], not a dict of \['pixels', 'joints'\]"),
        ({"joints": np.array([np.nan])}, r"the observation's 'joints' is \[nan\], not finite in float32"),
    ],
)
def test_observations_stay_in_their_space(gives: dict[str, Any], message: str, tmp_path: Path) -> None:
    env = Lamp()
    env.gives = {25: gives}
    with pytest.raises((ValueError, FloatingPointError), match=rf"{message}\nat step 25, episode \d; .*holds all"):
        learn(Sequential(), env, steps=40, out=tmp_path, **OPTIONS)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 24
    assert learn(Sequential(), env, steps=40, out=tmp_path, **OPTIONS).step == 40  # in a new episode


@pytest.mark.filterwarnings("ignore:an episode of")
def test_where_no_episode_is_long_enough_it_is_said() -> None:
    with pytest.raises(ValueError, match="there is no window of 14 observations to draw: no episode among the last"):
        learn(Sequential(length=14), Lamp(), steps=40, **OPTIONS)


def test_several_learn_in_step() -> None:
    alone, *both = Sequential(), Sequential(), Sequential(IMAGE)
    results = learn_together(both, [Lamp(), Lamp(IMAGE)], seeds=[0, 1], steps=40, updates_per_step=0.5, **OPTIONS)
    assert [result.step for result in results] == [40, 40] and [len(each.batches) for each in both] == [10, 10]
    assert not same(alone, both[0])
