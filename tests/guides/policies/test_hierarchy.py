"""Several levels as one policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from torch import nn

from pyrocontrol.envs.acting.evaluate import evaluate_policy
from pyrocontrol.envs.latent_action import LatentActionEnv
from pyrocontrol.envs.point_maze import PointMaze
from pyrocontrol.guides.policies.flow_policy import FlowPolicy
from pyrocontrol.guides.policies.gaussian_policy import GaussianPolicy, MixturePolicy
from pyrocontrol.guides.policies.hierarchy import Hierarchy

VELOCITY = slice(2, None)
BOX = spaces.Box(np.array([-1, -0.4, 0], np.float32), np.array([1, 0.4, 3], np.float32))


def stirred(policy: Any) -> Any:
    """Weights that make a policy differ from the identity, and from one observation to the next."""
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return policy


def three_levels(observation_size: int = 5, action_size: int = 3) -> list[Any]:
    sizes = dict(hidden=(16, 16))
    return [
        stirred(FlowPolicy(2, action_size, **sizes)),
        stirred(FlowPolicy(observation_size, action_size, squash=False, **sizes)),
        stirred(FlowPolicy(observation_size, action_size, squash=False, couplings=3, **sizes)),
    ]


def test_any_actions_are_reproduced_through_three_levels() -> None:
    hierarchy = Hierarchy(three_levels(), [slice(3, None), None, None], action_space=BOX)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(4, 500, 5))
    actions = rng.uniform(BOX.low, BOX.high, (4, 500, 3))
    actions[0, :40] = BOX.high  # saturated, as they often are
    actions[1, :40] = BOX.low
    latents = hierarchy.latents(actions, observations)
    assert [value.shape for value in latents] == [(4, 500, 3)] * 3 and latents[0].dtype == torch.float64
    found = hierarchy.actions(latents[-1], observations).numpy()
    assert (abs(found - actions) / (BOX.high - BOX.low) * 2).max() < 1e-5
    # Inside the bounds by more than a squashed action is clamped, to rounding.
    inner = abs(actions - (BOX.low + BOX.high) / 2) < 0.49 * (BOX.high - BOX.low)
    assert abs(found - actions)[inner].max() < 1e-9
    # Every level's latents are those of the levels below.
    low, middle, top = (level.double() for level in hierarchy.levels)
    seen = torch.as_tensor(observations)
    np.testing.assert_allclose(middle.actions(latents[1], seen), latents[0], atol=1e-7)
    np.testing.assert_allclose(top.actions(latents[2], seen), latents[1], atol=1e-7)


def test_levels_taken_in_the_wrong_order_do_not_reproduce_actions() -> None:
    low, middle, top = three_levels()
    observations, actions = torch.randn(50, 5), torch.rand(50, 3) * 1.8 - 0.9
    right = Hierarchy([low, middle, top], [slice(3, None), None, None])
    wrong = Hierarchy([low, top, middle], [slice(3, None), None, None])
    latents = right.latents(actions, observations)[-1]
    assert abs(right.actions(latents, observations) - actions).max() < 1e-6
    assert abs(wrong.actions(latents, observations) - actions).max() > 0.1


def test_an_episode_is_reproduced_in_the_environment_of_the_levels() -> None:
    levels = [policy.double() for policy in three_levels(4, 2)]
    env: Any = PointMaze()
    free = PointMaze()
    for policy, columns in zip(levels, [VELOCITY, None, None], strict=True):
        env = LatentActionEnv(env, policy, observation=columns)
    hierarchy = Hierarchy(levels, [VELOCITY, None, None], action_space=free.action_space)  # type: ignore[arg-type]
    seen, expected = env.reset(seed=0)[0], free.reset(seed=0)[0]
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 2)):
        seen = env.step(hierarchy.latents(action, seen)[-1].numpy())[0]
        expected = free.step(action)[0]
        np.testing.assert_allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize("holds", [(1, 1), (3, 1), (2, 3)])
def test_it_acts_as_its_top_does_in_the_environment_of_the_levels_below(holds: tuple[int, int]) -> None:
    low, middle, top = levels = three_levels(4, 2)
    env: Any = LatentActionEnv(PointMaze(), low, observation=VELOCITY, hold=holds[0])
    env = LatentActionEnv(env, middle, hold=holds[1])
    expected, seen = [], env.reset(seed=0)[0]
    for _ in range(36 // (holds[0] * holds[1])):
        seen = env.step(top.act(seen, deterministic=True))[0]
        expected.append(seen)
    plain = PointMaze()
    hierarchy = Hierarchy(levels, [VELOCITY, None, None], holds=holds, action_space=plain.action_space)  # type: ignore[arg-type]
    found, state = [plain.reset(seed=0)[0]], None
    for _ in range(36):
        action, state = hierarchy.predict(found[-1], state, deterministic=True)
        assert plain.action_space.contains(action)
        found.append(plain.step(action)[0])
    np.testing.assert_allclose(found[holds[0] * holds[1] :: holds[0] * holds[1]], expected, atol=1e-5)


def test_the_latent_at_the_top_may_be_fixed_for_an_episode() -> None:
    levels = three_levels(4, 2)
    hierarchy = Hierarchy(levels, [VELOCITY, None, None], fixed_latent=True)
    observations = torch.randn(30, 2, 4)
    state, drawn = None, []
    for time, observation in enumerate(observations):
        # The second row begins anew in between.
        start = np.array([time == 0, time in (0, 12)])
        action, state = hierarchy.predict(observation.numpy(), state, start)
        expected = hierarchy.actions(state.latents[:, -1], observation)
        np.testing.assert_allclose(action, expected, atol=1e-5)
        drawn.append(state.latents[:, -1].numpy())
    drawn_rows = np.stack(drawn, 1)
    assert len(np.unique(drawn_rows[0], axis=0)) == 1
    assert len(np.unique(drawn_rows[1], axis=0)) == 2 and (drawn_rows[1, :12] == drawn_rows[1, 0]).all()
    # Where it is not fixed, the same observation leads to different actions.
    free = Hierarchy(levels, [VELOCITY, None, None])
    one = observations[0, 0].numpy()
    _, state = free.predict(one)
    assert abs(free.predict(one, state)[0] - free.predict(one, state)[0]).max() > 1e-3
    _, state = hierarchy.predict(one)
    np.testing.assert_array_equal(hierarchy.predict(one, state)[0], hierarchy.predict(one, state)[0])
    # Its likeliest latent is 0.
    deterministic = hierarchy.predict(one, deterministic=True)[0]
    np.testing.assert_allclose(deterministic, hierarchy.actions(torch.zeros(2), one), atol=1e-5)


def test_rows_do_not_touch_each_other() -> None:
    hierarchy = Hierarchy(three_levels(4, 2), [VELOCITY, None, None], holds=(2, 2))
    observations = torch.randn(9, 3, 4).numpy()
    together, state = [], None
    for observation in observations:
        action, state = hierarchy.predict(observation, state, deterministic=True)
        together.append(action)
    for row in range(3):
        state = None
        for time, observation in enumerate(observations[:, row]):
            action, state = hierarchy.predict(observation, state, deterministic=True)
            np.testing.assert_allclose(action, together[time][row], atol=1e-6)


def test_a_policy_that_is_no_flow_may_be_at_the_top() -> None:
    low = FlowPolicy(4, 2, hidden=(8,))
    hierarchy = Hierarchy([low, MixturePolicy(4, 2, squash=False, hidden=(8,))], holds=[3])
    action, _ = hierarchy.predict(np.zeros(4))
    assert action.shape == (2,) and abs(action).max() < 1
    with pytest.raises(NotImplementedError, match="MixturePolicy cannot turn actions back"):
        hierarchy.latents(np.zeros(2), np.zeros(4))
    single = Hierarchy([MixturePolicy(4, 2, hidden=(8,))])
    assert single.predict(np.zeros((3, 4)))[0].shape == (3, 2)


def test_it_can_be_evaluated() -> None:
    hierarchy = Hierarchy(three_levels(4, 2), [VELOCITY, None, None], holds=(3, 1), fixed_latent=True)
    found = evaluate_policy(TimeLimit(PointMaze(), 20), hierarchy, 2, deterministic=False)
    assert len(found["return"]) == 2 and set(found["success"]) <= {0.0, 1.0}


# On disk


def test_it_is_kept_in_one_file(tmp_path: Path) -> None:
    levels = three_levels()[:2] + [GaussianPolicy(2, 3, squash=False, hidden=(4,))]
    levels = [policy.double() for policy in levels]
    hierarchy = Hierarchy(
        levels,
        [slice(3, None), None, [4, 1]],
        observation_size=5,
        holds=(3, 2),
        fixed_latent=True,
        action_space=BOX,
    )
    hierarchy.save(tmp_path / "new" / "hierarchy.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["hierarchy.pt"]
    loaded = Hierarchy.load(tmp_path / "new" / "hierarchy.pt")
    assert [type(level).__name__ for level in loaded.levels] == ["FlowPolicy", "FlowPolicy", "GaussianPolicy"]
    assert loaded.columns == hierarchy.columns == [[3, 4], [0, 1, 2, 3, 4], [4, 1]]
    assert loaded.holds == (3, 2) and loaded.fixed_latent and loaded.action_space == BOX
    assert next(loaded.levels[2].parameters()).dtype == torch.float64
    observations, actions = torch.randn(6, 5), torch.rand(6, 3) * 0.3
    for mine, theirs in zip(
        hierarchy.latents(actions, observations), loaded.latents(actions, observations), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert loaded.signature() == hierarchy.signature() != Hierarchy(three_levels(), [[0, 1], None, None]).signature()


def test_the_top_needs_no_latents() -> None:
    class Top(nn.Module):
        """What `ActionGuide` says, and no more."""

        observation_size, action_size, squash, has_rsample = 4, 2, False, True

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def draw(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(*observations.shape[:-1], 2), torch.zeros(observations.shape[:-1])

        def mode(self, observations: torch.Tensor) -> torch.Tensor:
            return self.draw(observations)[0]

        def signature(self) -> str:
            return "Top"

    low = flow()
    action, _ = Hierarchy([low, Top()]).predict(np.zeros(4, np.float32))
    assert torch.allclose(torch.as_tensor(action), low.actions(torch.zeros(2), torch.zeros(4)))
    lowest = Top()
    lowest.squash = True
    with pytest.raises(ValueError, match="level 0 .Top. is no invertible map .*: it can only be the top"):
        Hierarchy([lowest, flow(squash=False)])


# Bad input


def flow(observations: int = 4, actions: int = 2, squash: bool = True) -> FlowPolicy:
    return FlowPolicy(observations, actions, squash=squash, hidden=(4,))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Hierarchy([]), ValueError, "a hierarchy needs at least one level"),
        (lambda: Hierarchy(["policy"]), TypeError, "a level must be a policy and a torch module, got str"),
        (lambda: Hierarchy([flow(), flow(4, 3, False)]), ValueError, "level 1 (FlowPolicy) acts with 3 numbers"),
        (lambda: Hierarchy([flow(), flow()]), ValueError, "level 1 (FlowPolicy) was trained for the environment"),
        (lambda: Hierarchy([flow(squash=False)]), ValueError, "was trained for a level above the lowest"),
        (
            lambda: Hierarchy([MixturePolicy(4, 2), flow(squash=False)]),
            ValueError,
            "level 0 (MixturePolicy) is no invertible map from latents to actions: it can only be the top",
        ),
        (
            lambda: Hierarchy([MixturePolicy(4, 2)], fixed_latent=True),
            ValueError,
            "the latent of the top cannot be fixed",
        ),
        (lambda: Hierarchy([flow(3), flow(squash=False)]), ValueError, "level 0: the policy takes observations of 3"),
        (lambda: Hierarchy([flow()], [None, None]), ValueError, "observations are 2, one for each of 1 levels"),
        (lambda: Hierarchy([flow()], holds=[2]), ValueError, "holds must be 0 positive numbers"),
        (lambda: Hierarchy([flow(), flow(squash=False)], holds=[0]), ValueError, "hold must be at least 1, got 0"),
        (lambda: Hierarchy([flow(), flow(squash=False)], holds=[1.5]), TypeError, "hold must be a whole number"),  # type: ignore[list-item]
        (lambda: Hierarchy(flow()), TypeError, "policies must be a list, the lowest first, not a FlowPolicy"),  # type: ignore[arg-type]
        (
            lambda: Hierarchy([flow(), flow(squash=False).double()]),
            ValueError,
            "levels must be of one precision, these are torch.float32 and torch.float64",
        ),
        (lambda: Hierarchy([flow()], action_space=spaces.Box(1, 1, (2,))), ValueError, "have no bounds to scale to"),
        (lambda: Hierarchy([flow()], action_space=BOX), ValueError, "acts with 2 numbers, the space of actions"),
        (lambda: Hierarchy([flow()], action_space=spaces.Discrete(2)), TypeError, "must be a Box of floats"),  # type: ignore[arg-type]
    ],
    ids=[
        "none",
        "no-policy",
        "sizes",
        "squash-above",
        "no-squash-below",
        "mixture-below",
        "mixture-fixed",
        "observation",
        "observations",
        "holds",
        "hold",
        "hold-fraction",
        "no-list",
        "precision",
        "one-action",
        "space",
        "discrete",
    ],
)
def test_levels_that_do_not_fit_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.predict(np.zeros(3)), "observations must have shape [4] or [B, 4], got [3]"),
        (lambda h: h.predict(np.full(4, np.nan)), "the observation is NaN or infinite"),
        (lambda h: h.predict(np.zeros(4), h.predict(np.zeros((2, 4)))[1]), "not of 1 rows"),
        (lambda h: h.predict(np.zeros((2, 4)), None, np.ones(3, bool)), "episode_start must be one bool or [2]"),
        (lambda h: h.latents(np.zeros(3), np.zeros(4)), "actions must have shape [..., 2], got [3]"),
        (lambda h: h.latents(np.array([0, 1.01]), np.zeros(4)), "actions must be within Box(-1.0, 1.0"),
        (lambda h: h.latents(np.array([0, np.nan]), np.zeros(4)), "actions or observations are NaN or infinite"),
        (lambda h: h.latents(np.zeros(2), np.full(4, np.inf)), "actions or observations are NaN or infinite"),
        (lambda h: h.actions(np.array([0, np.nan]), np.zeros(4)), "latents or observations are NaN or infinite"),
        (lambda h: h.actions(np.zeros((5, 2)), np.zeros((4, 4))), "observations must have shape [5, 4], got [4, 4]"),
    ],
    ids=[
        "observation",
        "nan",
        "state",
        "episode-start",
        "actions",
        "out-of-bounds",
        "nan-actions",
        "infinite-observations",
        "nan-latents",
        "batch",
    ],
)
def test_wrong_calls_are_refused(call: Any, message: str) -> None:
    hierarchy = Hierarchy([flow(), flow(squash=False)])
    with pytest.raises(ValueError, match=re.escape(message)):
        call(hierarchy)


def test_actions_may_be_out_of_bounds_by_rounding() -> None:
    hierarchy = Hierarchy([FlowPolicy(4, 3, hidden=(4,))], action_space=BOX)
    edge = BOX.high.astype(np.float64) * (1 + 1e-7)
    assert hierarchy.latents(edge, np.zeros(4))[0].isfinite().all()
    with pytest.raises(ValueError, match=r"actions must be within Box\("):
        hierarchy.latents(BOX.high * 1.01, np.zeros(4))


def test_levels_are_copies() -> None:
    policy = flow()
    hierarchy = Hierarchy([policy])
    nn.init.zeros_(next(policy.parameters()))
    assert next(hierarchy.parameters()).any() and not any(weight.requires_grad for weight in hierarchy.parameters())


def test_a_module_that_is_no_policy_is_refused() -> None:
    with pytest.raises(TypeError, match="level 0: a Linear is no policy, it has no observation_size"):
        Hierarchy([nn.Linear(2, 2)])
