"""Training levels one after the other."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from torch import nn

from pyrocontrol.envs.latent_action import LatentActionEnv
from pyrocontrol.envs.point_maze import PointMaze, PointMove
from pyrocontrol.guides.policies.flow_policy import FlowPolicy
from pyrocontrol.guides.policies.hierarchy import Hierarchy
from pyrocontrol.inference.control.soft_control import SoftActorCritic
from pyrocontrol.inference.control.stagewise import train_stagewise
from pyrocontrol.models.optimality import GaussianPrior


class Result(NamedTuple):
    interrupted: bool = False


class Learner:
    """A policy whose weights say when it was made, and by which random numbers."""

    def __init__(self, level: int, observation_size: int, action_size: int) -> None:
        self.policy = FlowPolicy(observation_size, action_size, squash=level == 0, hidden=(4,))
        self.made = (level, observation_size, action_size)


class Calls:
    """Stands for `learn_together` of one learner: writes down what it is given, and changes the policy."""

    def __init__(self, interrupt: int | None = None) -> None:
        self.found: list[dict[str, Any]] = []
        self.interrupt = interrupt

    def __call__(self, batch: list[Learner], envs: list[Any], **given: Any) -> list[Result]:
        (learner,), (env,) = batch, envs
        below, layer = [], env
        while isinstance(layer, gymnasium.Wrapper):
            if isinstance(layer, LatentActionEnv):
                below.append((layer.hold, layer.policy.embedding[0].bias[0].item()))
            layer = layer.env
        with torch.no_grad():
            learner.policy.embedding[0].bias[0] = 10.0 + len(self.found)
        self.found.append(given | {"learner": learner, "below": below[::-1], "base": env.unwrapped})
        return [Result(len(self.found) - 1 == self.interrupt)]


def test_each_level_learns_on_the_latents_of_those_below() -> None:
    calls = Calls()
    envs = [PointMove(), PointMaze(0), PointMaze(1)]
    embeds = [partial(LatentActionEnv, hold=3), LatentActionEnv]
    result = train_stagewise(envs, Learner, [10, 20, 30], embed=embeds, learn=calls, batch_size=7)
    assert [call["steps"] for call in calls.found] == [10, 20, 30]
    assert [call["base"] for call in calls.found] == envs
    # What is embedded is what was learnt, the lowest level innermost.
    assert [call["below"] for call in calls.found] == [[], [(3, 10.0)], [(3, 10.0), (1, 11.0)]]
    assert [call["learner"].made for call in calls.found] == [(0, 4, 2), (1, 4, 2), (2, 4, 2)]
    assert result.policies == [call["learner"].policy for call in calls.found]
    assert result.results == [Result()] * 3 and not result.interrupted
    assert all(call["outs"] is None and call["batch_size"] == 7 for call in calls.found)
    assert Hierarchy(result.policies, holds=[3, 1]).predict(np.zeros(4))[0].shape == (2,)


def test_a_level_may_have_options_of_its_own() -> None:
    calls = Calls()
    own = [{"start": 9}, {"start": 3, "batch_size": 8}]
    train_stagewise([PointMove()] * 2, Learner, 10, embed=LatentActionEnv, learn=calls, of_level=own, batch_size=7)
    assert [(call["start"], call["batch_size"]) for call in calls.found] == [(9, 7), (3, 8)]


def test_levels_may_be_there_already(tmp_path: Path) -> None:
    calls = Calls()
    low = FlowPolicy(2, 2, hidden=(4,))
    see = partial(LatentActionEnv, observation=slice(2, None))
    result = train_stagewise([PointMaze(2)], Learner, 5, below=[low], embed=see, learn=calls, out=tmp_path)
    (call,) = calls.found
    assert result.policies == [low, call["learner"].policy] and call["learner"].made == (1, 4, 2)
    assert call["outs"] == [tmp_path / "level-1"] and len(call["below"]) == 1


def test_levels_have_seeds_of_their_own_and_the_same_ones_again() -> None:
    runs = []
    for seed in (0, 0, 1):
        calls = Calls()
        train_stagewise([PointMove] * 2, Learner, 5, embed=LatentActionEnv, learn=calls, seed=seed)
        weights = [call["learner"].policy.embedding[0].weight for call in calls.found]
        runs.append(([call["seeds"][0] for call in calls.found], torch.stack(weights)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    seeds = runs[0][0] + runs[2][0]
    assert len(set(seeds)) == 4 and not torch.equal(runs[0][1], runs[2][1])


def test_environments_that_it_makes_are_closed() -> None:
    class Closed(PointMove):
        open = 0

        def __init__(self) -> None:
            super().__init__()
            Closed.open += 1

        def close(self) -> None:
            Closed.open -= 1

    calls = Calls()
    train_stagewise([Closed, Closed], Learner, 5, embed=LatentActionEnv, learn=calls)
    assert Closed.open == 0 and calls.found[0]["base"] is not calls.found[1]["base"]
    given = Closed()
    train_stagewise([given], Learner, 5, embed=LatentActionEnv, learn=calls)
    assert Closed.open == 1  # it is not ours


def test_ctrl_c_ends_the_run_and_not_the_level_alone() -> None:
    calls = Calls(interrupt=1)
    result = train_stagewise([PointMove] * 3, Learner, 5, embed=LatentActionEnv, learn=calls)
    assert result.interrupted and len(result.policies) == len(calls.found) == 2


def test_a_level_is_evaluated_with_its_own_learner() -> None:
    calls = Calls()

    def evaluate(policies: list[Any]) -> Any:
        return lambda step: {"policies": policies, "step": step}

    found = train_stagewise([PointMove] * 2, Learner, 5, embed=LatentActionEnv, learn=calls, evaluate=evaluate)
    for number, call in enumerate(calls.found):
        assert call["evaluates"][0](9) == {"policies": found.policies[: number + 1], "step": 9}


# With the library's own learner


def soft(level: int, observation_size: int, action_size: int) -> SoftActorCritic:
    policy = FlowPolicy(observation_size, action_size, squash=level == 0, hidden=(8,))
    prior = GaussianPrior(action_size) if level else None
    return SoftActorCritic(policy, observation_size, action_size, prior=prior, hidden=(8,), temperature=0.2)


def two_levels(out: Path | None, steps: int | list[int] = 36, **options: Any) -> Any:
    envs = [lambda: TimeLimit(PointMove(positions=False), 20), lambda: TimeLimit(PointMaze(), 20)]
    embed = partial(LatentActionEnv, observation=slice(2, None), hold=3)
    return train_stagewise(
        envs, soft, steps, embed=embed, out=out, batch_size=8, start=20, replay=100, progress=False, **options
    )


def test_two_levels_learn_and_are_taken_up_again(tmp_path: Path) -> None:
    whole = two_levels(tmp_path / "whole")
    assert [result.step for result in whole.results] == [36, 36]
    # One step of the upper level is three of the maze, or what is left of an episode: 7 steps for 20.
    assert [step for step, _ in whole.results[1].returns] == [7, 14, 21, 28, 35]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["level-0", "level-1"]
    hierarchy = Hierarchy(whole.policies, [slice(2, None), None], holds=[3])
    hierarchy.save(tmp_path / "hierarchy.pt")
    assert Hierarchy.load(tmp_path / "hierarchy.pt").signature() == hierarchy.signature()
    # Stopped in the middle of the second level, and gone on from there.
    two_levels(tmp_path / "part", [36, 28])
    again = two_levels(tmp_path / "part")
    for mine, theirs in zip(whole.policies, again.policies, strict=True):
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight, theirs.state_dict()[name]), name


def test_a_level_is_not_trained_further_below_another(tmp_path: Path) -> None:
    two_levels(tmp_path)
    before = (tmp_path / "level-0" / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="was trained on level 0 as it is at step 36, not 40; pass resume=False"):
        two_levels(tmp_path, [40, 36])
    assert (tmp_path / "level-0" / "checkpoint.pt").read_bytes() == before
    two_levels(tmp_path, [40, 36], resume=False)


@pytest.mark.usefixtures("interruptible")
def test_what_begins_anew_can_be_stopped_and_gone_on_from(tmp_path: Path) -> None:
    two_levels(tmp_path)

    def stop(policies: Any) -> Any:
        def evaluate(step: int) -> dict[str, float]:
            if step == 12:
                signal.raise_signal(signal.SIGINT)
            return {}

        return evaluate

    assert two_levels(tmp_path, resume=False, evaluate=stop, evaluate_every=12).interrupted
    assert not (tmp_path / "level-1" / "checkpoint.pt").exists()  # trained on a level that is no more
    assert [result.step for result in two_levels(tmp_path).results] == [36, 36]


def test_a_folder_holds_no_more_than_is_asked_for(tmp_path: Path) -> None:
    def one_level(steps: int, out: Path) -> Any:
        env = lambda: TimeLimit(PointMove(positions=False), 20)  # noqa: E731
        given: dict[str, Any] = dict(batch_size=8, start=20, replay=100, progress=False)
        return train_stagewise([env], soft, steps, embed=LatentActionEnv, out=out, **given)

    one_level(30, tmp_path)
    one_level(36, tmp_path)  # the last level may go on
    two_levels(tmp_path, [36, 28])  # and have another above
    two_levels(tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.pt")}
    for steps in (40, 36):
        with pytest.raises(ValueError, match="level-1/checkpoint.pt .*level 0 as it is|level-1.* is of a level above"):
            one_level(steps, tmp_path)
    for given in ([36, 30], [30, 36]):
        with pytest.raises(ValueError, match="is at step 36, beyond the 30 asked for; pass resume=False"):
            two_levels(tmp_path, given)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pt")} == kept
    assert [result.step for result in two_levels(tmp_path).results] == [36, 36]
    (tmp_path / "level-0" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="was trained on level 0 as it is at step 0, not 36"):
        two_levels(tmp_path)


def test_training_a_level_leaves_those_below_alone() -> None:
    low = FlowPolicy(4, 2, hidden=(8,))
    before = {name: weight.clone() for name, weight in low.state_dict().items()}
    train_stagewise(
        [lambda: TimeLimit(PointMaze(), 20)],
        soft,
        60,
        below=[low],
        embed=LatentActionEnv,
        batch_size=8,
        start=20,
        replay=100,
        progress=False,
    )
    assert all(torch.equal(weight, low.state_dict()[name]) for name, weight in before.items())


# Bad input


class Discrete(PointMove):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(envs=[]), ValueError, "there are no levels to train"),
        (dict(envs=[PointMove(), "maze"]), TypeError, "the environment of level 1 is none"),
        (dict(make_learner=None), TypeError, "make_learner must be a function"),
        (dict(make_learner=lambda *sizes: None), TypeError, "must return a learner that has a policy, got None"),
        (dict(steps_per_level=0), ValueError, "steps_per_level must be at least 1, not 0"),
        (dict(steps_per_level=10.0), TypeError, "steps_per_level must be a whole number, not 10.0"),
        (dict(seed=0.5), TypeError, "seed must be a whole number, not 0.5"),
        (dict(steps_per_level=[5]), ValueError, "one for each of 2 levels"),
        (dict(embed=[]), ValueError, "embed must be one, or one for each of 1 levels, got 0"),
        (dict(of_level=[{}]), ValueError, "of_level must be one for each of 2 levels, got 1"),
        (dict(embed=None), TypeError, "embed must make a policy part of an environment, got None"),
        (dict(below=FlowPolicy(4, 2)), TypeError, "below must be a list of policies, not a FlowPolicy"),
        (dict(envs=[Discrete]), TypeError, "level 0: the actions must be a Box of one row"),
        (dict(envs=[PointMaze], below=[FlowPolicy(3, 2)]), ValueError, "takes observations of 3 numbers"),
        (dict(envs=PointMove()), TypeError, "envs must be a list with one for each level"),
        # What is wrong with a level is found before those below it learn.
        (dict(envs=[PointMove, Discrete]), TypeError, "the actions must be a Box of floats"),
        (dict(embed=partial(LatentActionEnv, observation=slice(1))), ValueError, "takes observations of 4 numbers"),
        (dict(embed=lambda env, policy: None), TypeError, "level 1 has no environment to act in, but None"),
        (dict(make_learner=lambda _, o, a: Learner(0, o, a)), ValueError, "the policy needs squash=False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    calls = Calls()
    usual: dict[str, Any] = dict(envs=[PointMove] * 2, make_learner=Learner, steps_per_level=5, embed=LatentActionEnv)
    usual |= given
    with pytest.raises(error, match=re.escape(message)):
        train_stagewise(**usual, learn=calls)
    assert not calls.found


def test_steps_may_be_numpys() -> None:
    for steps in (np.int64(10), np.array([10, 10])):
        calls = Calls()
        train_stagewise([PointMove] * 2, Learner, steps, embed=LatentActionEnv, learn=calls)  # type: ignore[arg-type]
        assert [call["steps"] for call in calls.found] == [10, 10]


def test_a_module_that_is_no_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="the Linear is no invertible map"):
        train_stagewise([PointMove], Learner, 5, below=[nn.Linear(2, 2)], embed=LatentActionEnv, learn=Calls())


def test_a_folder_belongs_to_one_run_from_the_first_level_to_the_last(tmp_path: Path) -> None:
    def refused(*given: Any, **options: Any) -> list[Result]:
        with pytest.raises(BlockingIOError, match="in use by process"):
            train_stagewise([PointMove()], Learner, 10, embed=LatentActionEnv, learn=calls, out=tmp_path, resume=False)
        return calls(*given, **options)

    calls = Calls()
    train_stagewise([PointMove(), PointMaze(0)], Learner, 10, embed=LatentActionEnv, learn=refused, out=tmp_path)
    assert len(calls.found) == 2 and not list(tmp_path.iterdir())
