"""Measures of skills against values computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import pyrocontrol as pc
from pyrocontrol.envs import Demonstrations, Episode, PointSkillsEnv, PointTeacher
from pyrocontrol.envs.point_skills import demonstrations
from pyrocontrol.inference.imitation.skill_measures import SkillMeasures, play_cycle, state_mse

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Straight:
    """A model whose trajectories are straight lines, of which the embedding is the slope."""

    factor = torch.tensor([2.0, 0.5], dtype=torch.float64)

    def check(self, data: Any) -> None:
        if data.observations.shape[-1] != 2:
            raise ValueError("lines of 2 numbers are meant")

    def scaled(self, inputs: Tensor) -> Tensor:
        return (inputs - 1) * self.factor

    def generate(self, z: Tensor, first: Tensor, steps: int) -> Tensor:
        return first.unsqueeze(1) + torch.arange(steps + 1.0).unsqueeze(-1) * z.unsqueeze(1)

    def dynamics_of(self, z: Tensor, first: Tensor, steps: int, each: Tensor) -> Any:
        """Normals around 0, whatever came before."""
        exists = torch.arange(steps) < each.unsqueeze(1)

        def log_prob(states: Tensor) -> Tensor:
            return (torch.distributions.Normal(0.0, 1.0).log_prob(states).sum(-1) * exists).sum(1)

        return SimpleNamespace(log_prob=log_prob)

    def posterior(self, batch: Any) -> Any:
        last = batch.observations[torch.arange(len(batch)), batch.lengths - 1]
        return SimpleNamespace(mean=(last - batch.observations[:, 0]) / (batch.lengths - 1).unsqueeze(1))


def lines(*skills: tuple[int, tuple[float, float], int], start: float = 0.0) -> Demonstrations:
    """A trace of each (skill, slope, actions), observed without noise."""
    episodes = [
        Episode(
            start + np.arange(actions + 1.0)[:, None] * np.array(slope),
            np.zeros((actions, 1)),
            task=np.eye(3)[skill],
        )
        for skill, slope, actions in skills
    ]
    return Demonstrations.from_episodes(episodes, spaces.Box(-1, 1, (1,), np.float64), BOX)


TRAIN = lines((0, (0.5, 0.0), 4), (1, (0.0, 2.0), 3), (0, (1.5, 0.0), 2))  # mean slopes (1, 0) and (0, 2)
HELD_OUT = lines((0, (1.0, 1.0), 2), (1, (3.0, 0.0), 4), start=1.0)
COMPOSITE = lines((2, (1.0, 3.0), 4), (2, (1.0, 2.0), 2))


# Where the training demonstrations acted.
SEEN = np.array([(0, 0), (0.5, 0), (1, 0), (1.5, 0), (0, 0), (0, 2), (0, 4), (0, 0), (1.5, 0)])


def measures(model: Any = None, **other: Any) -> SkillMeasures:
    model = model or Straight()
    given: dict[str, Any] = {"subskills": ("a", "b"), "names": ("a", "b", "both")}
    given |= {"train": TRAIN, "held_out": HELD_OUT, "composite": COMPOSITE}
    return SkillMeasures(model, model, **(given | other))


def test_state_mse_by_hand() -> None:
    # Errors of the first: t in the second number, t = 1..4; of the second: none for 2 steps; 6 states, 2 numbers each.
    found = state_mse(Straight(), torch.tensor([[1.0, 2.0]] * 2, dtype=torch.float64), COMPOSITE)
    assert found["state_mse"] == pytest.approx((1 + 4 + 9 + 16) / 12, rel=1e-14)
    assert found["state_mse_scaled"] == pytest.approx(0.25 * (1 + 4 + 9 + 16) / 12, rel=1e-14)
    with pytest.raises(ValueError, match="got 1 for 2"):
        state_mse(Straight(), torch.zeros(1, 2), COMPOSITE)


def test_measures_by_hand() -> None:
    found = measures()(step=7)
    assert set(found) == {
        *(
            f"{metric}/{kind}"
            for metric in ("state_mse", "state_mse_scaled")
            for kind in ("sum", "encoded", "mean", "part", "own")
        ),
        *("embedding_mse/sum", "embedding_error/sum", "dynamics_nats/own"),
    }
    assert found["state_mse/sum"] == pytest.approx(30 / 12)  # the sum is (1, 2)
    # The mean is (0.5, 1): 0.25 + 4 and 0.25 + 1 times the squares of the steps.
    assert found["state_mse/mean"] == pytest.approx((4.25 * (1 + 4 + 9 + 16) + 1.25 * (1 + 4)) / 12)
    assert found["state_mse/encoded"] == found["state_mse/own"] == 0
    # a, (1, 0): 9 (1 + 4 + 9 + 16) + 4 (1 + 4); b, (0, 2): (1 + 1) (1 + 4 + 9 + 16) + (1 + 4)
    assert found["state_mse/part"] == pytest.approx(min(290, 65) / 12)
    # Scaled, the squares of the two numbers count 4 and 1/4, and the other part is nearer.
    assert found["state_mse_scaled/part"] == pytest.approx(min(0.25 * 290, 4 * 35 + 0.25 * 30) / 12)
    assert found["embedding_mse/sum"] == pytest.approx(1 / 4)
    assert found["embedding_error/sum"] == pytest.approx((1 / math.sqrt(10) + 0) / 2)
    after = [(2, 2), (3, 3), (4, 1), (7, 1), (10, 1), (13, 1)]  # what follows in the two held out, no padding
    square = sum((2 * (x - 1)) ** 2 + (0.5 * (y - 1)) ** 2 for x, y in after) / 12
    # In units of the deviations of what was trained on.
    units = np.log(np.array([2, 0.5]) * SEEN.std(0)).mean()
    assert found["dynamics_nats/own"] == pytest.approx(-0.5 * (math.log(2 * math.pi) + square) + units)


def test_likeness_by_hand() -> None:
    # Slopes (1, 2) of the sum, (1, 0) and (0, 2) of the parts; the mean of 1, 4, 9, 16 is 7.5.
    assert measures().likeness() == pytest.approx({"a": 4 / 2 * 7.5, "b": 1 / 2 * 7.5, "apart": 5 / 2 * 7.5})


def test_the_mean_state_by_hand() -> None:
    found = measures().mean_state()
    after = np.array([(2, 2), (3, 3), (4, 1), (7, 1), (10, 1), (13, 1)]) - SEEN.mean(0)
    assert found["state_mse/own"] == pytest.approx(np.square(after).mean())
    composite = np.array([(1, 3), (2, 6), (3, 9), (4, 12), (1, 2), (2, 4)]) - SEEN.mean(0)
    assert found["state_mse/composite"] == pytest.approx(np.square(composite).mean())
    scaled = np.square(after / SEEN.std(0)).mean()
    assert found["state_mse_scaled/own"] == pytest.approx(scaled)
    assert found["dynamics_nats/own"] == pytest.approx(-0.5 * (math.log(2 * math.pi) + scaled))


def test_models_of_other_coordinates_are_compared_in_one() -> None:
    found = measures(shown_as=torch.square)
    made = state_mse(Straight(), torch.tensor([[1.0, 2.0]]), COMPOSITE[[0]], torch.square)  # meant is (1, 3)
    assert made["state_mse"] == pytest.approx(sum((25 * t**4) for t in (1, 2, 3, 4)) / 8)
    assert found()["state_mse/encoded"] == 0
    squares = np.square([(1, 3), (2, 6), (3, 9), (4, 12), (1, 2), (2, 4)]) - np.square(SEEN).mean(0)
    assert found.mean_state()["state_mse/composite"] == pytest.approx(np.square(squares).mean())


def test_only_the_sub_skills_are_added_up() -> None:
    more = lines((0, (1.0, 0.0), 2), (1, (0.0, 2.0), 2), (2, (50.0, 50.0), 2))
    kinds = measures(train=more).embeddings()
    assert kinds["sum"].tolist() == [[1, 2]] * 2 and kinds["encoded"].tolist() == [[1, 3], [1, 2]]
    assert kinds["mean"].tolist() == [[0.5, 1]] * 2 and list(kinds) == ["sum", "encoded", "mean"]


def test_measures_of_a_trajectory_cvae() -> None:
    shown = [
        demonstrations(skills, 2, seed=seed, names=("rise", "push", "toy"))
        for seed, skills in enumerate((("rise", "push"), ("rise", "push"), ("toy",)))
    ]
    skills = pc.models.TrajectoryCVAE(shown[0].observation_space, shown[0].action_space, latent=2, hidden=(8,))
    skills.normalize(shown[0])
    guide = pc.guides.TrajectoryGuide(skills, encoder_size=4)
    names = {"subskills": ("rise", "push"), "names": ("rise", "push", "toy")}
    found = SkillMeasures(skills, guide, **names, train=shown[0], held_out=shown[1], composite=shown[2])()
    assert all(math.isfinite(value) for value in found.values())
    model = pc.guides.TrajectoryGuide(skills, encoder_size=4)
    assert found == SkillMeasures(skills, guide, **names, train=shown[0], held_out=shown[1], composite=shown[2])()
    assert found != SkillMeasures(skills, model, **names, train=shown[0], held_out=shown[1], composite=shown[2])()


def test_skills_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="no skill 'flip' among the names a, b, both"):
        measures(subskills=("a", "flip"))
    with pytest.raises(ValueError, match="no demonstration of the skill 'both'"):
        measures(subskills=("a", "both"))
    with pytest.raises(ValueError, match="each once, got a, b, a"):
        measures(subskills=("a", "b", "a"))
    with pytest.raises(ValueError, match="each once, got none"):
        measures(subskills=())
    with pytest.raises(ValueError, match="there are 2 names, but the task has 3 numbers"):
        measures(names=("a", "b"))


@pytest.mark.parametrize("which", ["train", "held_out", "composite"])
def test_demonstrations_of_something_else_are_refused(which: str) -> None:
    with pytest.raises(ValueError, match=f"the demonstrations {which} are of something else: lines of 2 numbers"):
        measures(**{which: demonstrations(["rise", "push", "toy"], 1)})
    shown = demonstrations(["rise", "push"], 1)
    skills: Any = pc.models.TrajectoryCVAE(shown.observation_space, shown.action_space, latent=2, hidden=(8,))
    given = {"train": shown, "held_out": shown, "composite": shown}
    names = {"subskills": ("rise", "push"), "names": ("rise", "push")}
    SkillMeasures(skills, pc.guides.TrajectoryGuide(skills, encoder_size=4), **names, **given)
    with pytest.raises(ValueError, match=f"{which} are of something else: .* takes observations of 5 numbers"):
        SkillMeasures(skills, pc.guides.TrajectoryGuide(skills, encoder_size=4), **names, **(given | {which: TRAIN}))


def test_a_teacher_plays_its_cycle() -> None:
    env = PointSkillsEnv("toy", steps=10, render_mode="rgb_array")
    cycle = play_cycle(env, PointTeacher("toy", 10))
    assert cycle.fraction == 1 and cycle.tracking_error < 1e-6 and len(cycle.frames) == 11
    assert play_cycle(PointSkillsEnv("toy", steps=10), PointTeacher("toy", 10)).frames == []


def test_who_leaves_the_arena_has_not_played_its_cycle() -> None:
    env = PointSkillsEnv("rise")
    cycle = play_cycle(env, lambda observation: np.array([1.0, 0.0], np.float32))
    env.reset()
    steps, errors, terminated = 0, [], False
    while not terminated:
        *_, terminated, _, info = env.step(np.array([1.0, 0.0]))
        steps, errors = steps + 1, [*errors, info["tracking_error"]]
    assert cycle.fraction == steps / 30 < 0.7 and cycle.tracking_error == pytest.approx(np.mean(errors))


def test_an_environment_without_cycles_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks cycles and tracking_error"):
        play_cycle(gymnasium.make("CartPole-v1"), lambda observation: 0)
    with pytest.raises(TypeError, match="policy"):
        play_cycle(PointSkillsEnv(), 3)
