"""Policies: what they score, what they do, and that the one is the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.utils import _pytree as pytree

from pyrocontrol.envs import Demonstrations, Episode, Transitions
from pyrocontrol.guides import MemoryGuide
from pyrocontrol.inference import StepwiseKL_ELBO, fit, forward_log_likelihood
from pyrocontrol.models import (
    DirectPolicy,
    DiscreteMemory,
    GoalConditionedPolicy,
    LatentMemoryPolicy,
    MixtureHead,
    Policy,
    ReactivePolicy,
    RecurrentPolicy,
    WaveNet,
    make_head,
)

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
NAMED = spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float32), room=spaces.Discrete(3, start=1))
OBSERVATIONS = {"vector": VECTOR, "dict": NAMED, "tuple": spaces.Tuple((VECTOR, spaces.MultiBinary(2)))}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=5),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(np.float32([[-1], [0.5]]), np.float32([[1], [2]])),
}


class ConvolutionalPolicy(DirectPolicy):
    """One of a user's own."""

    remembers = True

    def __init__(self, observation_space: Any, action_space: Any, head: str = "auto"):
        super().__init__(observation_space, action_space)
        self.network = WaveNet(self.encoded_size, 6, channels=4, dilations=(1, 2))
        self.head = make_head(head, 6, action_space)


KINDS: dict[str, Callable[..., Policy]] = {
    "reactive": ReactivePolicy,
    "lstm": RecurrentPolicy,
    "gru": lambda *spaces, **options: RecurrentPolicy(
        *spaces, cell="gru", hidden=7, layers=2, see_previous_action=True, **options
    ),
    "seeing lstm": lambda *spaces, **options: RecurrentPolicy(*spaces, see_previous_action=True, **options),
    "convolutional": ConvolutionalPolicy,
    "discrete memory": lambda *spaces, **options: LatentMemoryPolicy(*spaces, size=3, hidden=(6, 5), **options),
    "gaussian memory": lambda *spaces, **options: LatentMemoryPolicy(*spaces, memory="gaussian", size=2, **options),
}
STATEFUL = [name for name in KINDS if name != "reactive"]
WITHOUT_LATENTS = ["reactive", "lstm", "gru", "seeing lstm", "convolutional"]


def batch_of(space: gymnasium.Space, count: int) -> Any:
    """So many elements of a space, in the environment's form."""
    return batch_space(space, count).sample()


def demonstrations(
    observation_space: gymnasium.Space = VECTOR,
    action_space: gymnasium.Space = ACTIONS["discrete"],
    lengths: tuple[int, ...] = (4, 2, 5),
) -> Demonstrations:
    for number, space in enumerate((observation_space, action_space)):
        space.seed(number)
    episodes = [Episode(batch_of(observation_space, n + 1), batch_of(action_space, n), truncated=True) for n in lengths]
    return Demonstrations.from_episodes(episodes, action_space, observation_space)


def log_prob(policy: Any, batch: Any) -> Tensor:
    trace = poutine.trace(policy.model).get_trace(batch)
    trace.compute_log_prob()
    return trace.nodes["actions"]["log_prob"]


# What they score


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("kind", WITHOUT_LATENTS)
def test_the_model_scores_what_predict_would_do_next(kind: str, actions: str) -> None:
    """So nothing that comes later is seen, and padding changes nothing."""
    data = demonstrations(action_space=ACTIONS[actions])
    policy: Any = KINDS[kind](VECTOR, ACTIONS[actions])
    expected = torch.zeros(len(data))
    for row in range(len(data)):
        state = policy.begin(1)
        for t in range(int(data.lengths[row]) - 1):
            inputs = policy.scaled(data.observations[row : row + 1, t])
            distribution, state = policy.step(inputs, state, True)
            action = data.actions[row : row + 1, t]
            expected[row] += distribution.log_prob(action)[0]
            state = policy.remember(state, action)
    torch.testing.assert_close(log_prob(policy, data), expected)
    loss = Trace_ELBO().differentiable_loss(policy, policy.guide, data)
    torch.testing.assert_close(loss, -expected.sum())
    torch.testing.assert_close(policy.loss(data), loss)
    assert StepwiseKL_ELBO().loss(policy, policy.guide, data) == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize("kind", ["discrete memory", "gaussian memory"])
def test_padding_changes_nothing(kind: str) -> None:
    data = demonstrations(action_space=ACTIONS["box"])
    policy: Any = KINDS[kind](VECTOR, ACTIONS["box"])
    memory = poutine.trace(policy.model).get_trace(data).nodes["memory"]
    z, prior = memory["value"], memory["fn"]
    given = poutine.condition(policy.model, {"memory": z})
    for row in range(len(data)):
        one, steps = data[[row]], int(data.lengths[row]) - 1
        alone = poutine.condition(policy.model, {"memory": z[[row], :steps]})
        traces = [poutine.trace(model).get_trace(x) for model, x in ((given, data), (alone, one))]
        for trace in traces:
            trace.compute_log_prob()
        for name in ("memory", "actions"):
            torch.testing.assert_close(traces[0].nodes[name]["log_prob"][row], traces[1].nodes[name]["log_prob"][0])
    assert (prior.step_log_prob(z) != 0).sum(1).tolist() == (data.lengths - 1).tolist()


@pytest.mark.parametrize("actions", ACTIONS)
def test_reactive_policies_learn_from_transitions_and_traces_alike(actions: str) -> None:
    data = demonstrations(NAMED, ACTIONS[actions])
    policy = ReactivePolicy(NAMED, ACTIONS[actions])
    transitions = data.transitions()
    policy.check(data)
    policy.check(transitions)
    rows = log_prob(policy, transitions)
    assert rows.shape == (len(transitions),)
    torch.testing.assert_close(rows.sum(), log_prob(policy, data).sum())
    torch.testing.assert_close(policy.loss(transitions), policy.loss(data))
    gradients = [torch.autograd.grad(policy.loss(x), list(policy.parameters())) for x in (transitions, data)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["lstm", "discrete memory"])
def test_vectorised_particles_run(kind: str) -> None:
    data = demonstrations()
    policy: Any = KINDS[kind](VECTOR, ACTIONS["discrete"])
    guide = MemoryGuide(policy) if isinstance(policy, LatentMemoryPolicy) else policy.guide
    elbo = StepwiseKL_ELBO(num_particles=20, max_plate_nesting=1, vectorize_particles=True)
    loss = elbo.loss(policy, guide, data)
    assert math.isfinite(loss)
    if kind == "lstm":
        assert loss == pytest.approx(float(policy.loss(data).detach()), rel=1e-3)
        with pytest.raises(ValueError, match="give the actions"):
            RecurrentPolicy(VECTOR, ACTIONS["discrete"], see_previous_action=True).distribution(data.observations)


# Latent memory as a chain


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_tables_are_the_model_summed_over_memories(actions: str) -> None:
    data = demonstrations(action_space=ACTIONS[actions], lengths=(3, 2)).to(dtype=torch.float64)
    policy = LatentMemoryPolicy(VECTOR, ACTIONS[actions], size=2).double()
    policy.normalize(data)
    initial, transition, emission = policy.tables(data)
    assert initial.shape == (2, 2) and transition.shape == (2, 2, 2, 2) and emission.shape == (2, 3, 2)
    for table in (initial, transition):
        torch.testing.assert_close(table.logsumexp(-1), torch.zeros(table.shape[:-1], dtype=torch.float64))
    found = forward_log_likelihood(initial, transition, emission)
    for row, steps in ((0, 3), (1, 2)):
        joint = []
        for path in itertools.product(range(2), repeat=steps):
            conditioned = poutine.condition(policy.model, {"memory": torch.tensor([path])})
            joint.append(poutine.trace(conditioned).get_trace(data[[row]]).log_prob_sum())
        torch.testing.assert_close(found[row], torch.stack(joint).logsumexp(0))
        torch.testing.assert_close(policy.exact_loss(data[[row]]), -found[row])
    loss, weights = policy.exact_loss(data), list(policy.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, weights), torch.autograd.grad(-found.sum(), weights))


# What they do


@pytest.mark.parametrize(("observations", "actions"), [*zip(OBSERVATIONS, ACTIONS, strict=True)])
@pytest.mark.parametrize("kind", KINDS)
def test_many_episodes_at_once_are_as_each_alone(kind: str, observations: str, actions: str) -> None:
    space, action_space = OBSERVATIONS[observations], ACTIONS[actions]
    policy = KINDS[kind](space, action_space)
    space.seed(0)
    steps = [batch_of(space, 3) for _ in range(5)]
    # Row 1 begins anew at step 2, row 2 at step 4.
    starts = np.array([[t == 0, t in (0, 2), t in (0, 4)] for t in range(5)])
    together, state = [], None
    for t, observation in enumerate(steps):
        drawn, _ = policy.predict(observation, state, starts[t])
        action, state = policy.predict(observation, state, starts[t] if t else None, True)
        assert all(one in action_space for one in [*drawn, *action]) and len(action) == 3
        assert drawn.dtype == action.dtype == action_space.dtype and (state is None) == (kind == "reactive")
        together.append(action)
    for row in range(3):
        state = None
        for t, observation in enumerate(steps):
            alone = pytree.tree_map(itemgetter(row), observation)
            assert policy.predict(alone, None, np.array(True))[0] in action_space
            action, state = policy.predict(alone, None if starts[t, row] else state, None, True)
            np.testing.assert_allclose(action, together[t][row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_remembers_and_may_be_kept_as_arrays(kind: str) -> None:
    policy: Any = KINDS[kind](VECTOR, ACTIONS["box"], head="deterministic")
    if kind == "discrete memory":  # which state it is in shows at once
        with torch.no_grad():
            policy.from_memory.weight.mul_(20)
            policy.memory.transition.weight.mul_(20)
    pyro.set_rng_seed(0)
    x, y = np.float32([[3, -3, 1], [-3, 3, 0]]), np.zeros((2, 3), np.float32)
    _, state = policy.predict(x, deterministic=True)
    kept = pytree.tree_map(lambda leaf: leaf.numpy().copy(), state)
    action, _ = policy.predict(y, state, None, True)
    same, _ = policy.predict(y, kept, None, True)
    fresh, _ = policy.predict(y, None, None, True)
    begun, _ = policy.predict(y, state, np.array([True, False]), True)
    np.testing.assert_array_equal(action, same)
    assert not np.allclose(action, fresh)
    np.testing.assert_allclose(begun, np.stack([fresh[0], action[1]]), rtol=1e-5)


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_of_another_policy_or_batch_is_refused(kind: str) -> None:
    policy = KINDS[kind](VECTOR, ACTIONS["box"])
    others: list[Policy] = [
        RecurrentPolicy(VECTOR, ACTIONS["box"], hidden=5),
        LatentMemoryPolicy(VECTOR, ACTIONS["box"], memory="gaussian", size=9),
    ]
    three, one = np.zeros((3, 3), np.float32), np.zeros(3, np.float32)
    states = [other.begin(3) for other in others] + [policy.predict(x)[1] for x in (one, three[:2])]
    for state in [*states, "state", 0.0, ()]:
        with pytest.raises(ValueError, match="the state is of another policy, or not of 3 rows"):
            policy.predict(three, state)
    leaves = pytree.tree_map(lambda leaf: leaf.double().numpy(), policy.predict(three)[1])
    plain = tuple(tuple(part) if isinstance(part, tuple) else part for part in leaves)
    for start in (None, False, np.array([True, False, True])):
        assert type(policy.predict(three, plain, start)[1]) is type(policy.predict(three)[1])


@pytest.mark.parametrize("kind", ["reactive", "lstm", "discrete memory"])
def test_what_cannot_be_acted_on_is_refused(kind: str) -> None:
    policy = KINDS[kind](VECTOR, ACTIONS["box"])
    three = np.zeros((3, 3), np.float32)
    _, state = policy.predict(three, None, [True, True, True])
    for given in (None, state):
        for start in (np.ones(1, bool), np.ones((3, 1), bool), torch.ones(4, dtype=torch.bool)):
            with pytest.raises(ValueError, match=r"episode_start must be one bool or \[3\], got shape \["):
                policy.predict(three, given, start)
    policy.predict(three[0], None, np.ones(1, bool))
    for bad in (np.nan, np.inf, -np.inf):
        many = np.zeros((4, 3), np.float32)
        many[2, 1] = many[3, 0] = bad
        for observation, row in ((many, 2), (many[2], 0)):
            with pytest.raises(ValueError, match=f"row {row} is not finite"):
                policy.predict(observation)
    for observation, message in (
        (np.zeros((0, 3), np.float32), "the batch is empty"),
        (np.zeros((2, 2, 3), np.float32), "one observation or a batch of them"),
        (np.zeros(4, np.float32), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.predict(observation)
    with pytest.raises(ValueError, match=r"must be a dict of \['place', 'room'\], got \['place'\]"):
        KINDS[kind](NAMED, ACTIONS["box"]).predict({"place": np.zeros(2, np.float32)})


def test_predict_draws_from_the_distribution_or_takes_its_mode() -> None:
    policy = ReactivePolicy(VECTOR, ACTIONS["discrete"])
    observation = np.float32([1, -1, 0.5])
    probs = policy.distribution(torch.as_tensor(observation)).probs.detach().numpy()
    drawn = policy.predict(np.tile(observation, (20_000, 1)))[0]
    assert np.abs(np.bincount(drawn - 5, minlength=3) / 20_000 - probs).max() < 0.015
    assert policy.predict(observation, deterministic=True)[0] == 5 + probs.argmax()


def test_actions_are_clipped_to_the_box() -> None:
    policy: Any = ReactivePolicy(VECTOR, ACTIONS["box"])
    with torch.no_grad():
        policy.head.loc.bias.copy_(torch.tensor([50.0, -50.0]))
    action, _ = policy.predict(np.zeros(3, np.float32))
    assert action.tolist() == [[1.0], [0.5]] and action.dtype == np.float32


# Goals

GOALS = spaces.Dict(
    achieved_goal=spaces.Box(-1, 1, (2,), np.float32),
    desired_goal=spaces.Box(-1, 1, (2,), np.float32),
    observation=spaces.Box(-1, 1, (3,), np.float32),
)


def goal_transitions(observation_space: gymnasium.Space, size: int, goal_size: int = 2) -> Transitions:
    torch.manual_seed(0)
    return Transitions(
        torch.rand(20, size), torch.rand(20, 1), spaces.Box(0, 1, (1,)), observation_space, torch.rand(20, goal_size)
    )


def test_a_goal_conditioned_policy_reads_the_goals_and_not_the_observations_own() -> None:
    data = goal_transitions(GOALS, 7)
    policy = GoalConditionedPolicy(GOALS, data.action_space, 2, normalize=data)
    assert policy.input_size == 7
    loss = policy.loss(data)
    torch.testing.assert_close(loss, -policy.distribution(data.observations, data.goals).log_prob(data.actions).sum())
    changed = data.observations.clone()
    changed[:, 2:4] += 1.0  # the desired goal, in the order of the space
    torch.testing.assert_close(policy.distribution(changed, data.goals).mean, policy.distribution_of(data).mean)
    assert not torch.allclose(
        policy.distribution(data.observations, data.goals + 1).mean, policy.distribution_of(data).mean
    )
    changed[:, 4] += 1.0
    assert not torch.allclose(policy.distribution(changed, data.goals).mean, policy.distribution_of(data).mean)


@pytest.mark.parametrize("whole", [True, False])
def test_a_goal_conditioned_policy_predicts_from_goal_observations(whole: bool) -> None:
    space = GOALS if whole else GOALS["observation"]
    policy = GoalConditionedPolicy(space, spaces.Box(-9, 9, (1,)), 2, head="deterministic")
    GOALS.seed(0)
    for observation in (GOALS.sample(), batch_of(GOALS, 4)):
        action, _ = policy.predict(observation, deterministic=True)
        if whole:
            flat = np.concatenate([observation["achieved_goal"], np.zeros_like(observation["desired_goal"])], -1)
            flat = torch.as_tensor(np.concatenate([flat, observation["observation"]], -1))
        else:
            flat = torch.as_tensor(observation["observation"])
        expected = policy.distribution(flat, torch.as_tensor(observation["desired_goal"])).mean
        np.testing.assert_allclose(action, expected.detach().numpy(), rtol=1e-5)
        other, _ = policy.predict(observation, deterministic=True, goal=[0.1, 0.2])
        expected = policy.distribution(flat, torch.tensor([0.1, 0.2]).expand(flat.shape[:-1] + (2,))).mean
        np.testing.assert_allclose(other, expected.detach().numpy(), rtol=1e-5)


def test_goals_are_of_the_size_and_number_of_the_observations() -> None:
    single = GoalConditionedPolicy(VECTOR, ACTIONS["box"], 1, head="deterministic")
    many = np.ones((4, 3), np.float32)
    for observation in (many[0], many):
        np.testing.assert_array_equal(single.predict(observation, goal=2)[0], single.predict(observation, goal=[2])[0])
    policy = GoalConditionedPolicy(VECTOR, ACTIONS["box"], 2)
    data = goal_transitions(VECTOR, 3)
    GoalConditionedPolicy(VECTOR, data.action_space, 2).check(data)
    none = np.zeros(2)
    for seen, goal, message in (
        (many, None, "there is no goal"),
        (many, 2, "a goal has 2 numbers, got 1"),
        (many[0], [1, 2, 3], "a goal has 2 numbers, got 3"),
        (many, [np.nan, 0], "row 0 is not finite"),
        (many, np.zeros((3, 2)), "do not go with observations of batch"),
        (many, np.zeros((1, 2)), "do not go with observations of batch"),
        (many[0], np.zeros((4, 2)), "do not go with observations of batch"),
        ({"observation": many, "desired_goal": np.zeros((2, 2))}, None, "do not go with observations of batch"),
        ({"desired_goal": none}, None, "the observation has no 'observation'"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.predict(seen, goal=goal)
    with pytest.raises(ValueError, match="the observation has no 'achieved_goal', 'observation'"):
        GoalConditionedPolicy(GOALS, ACTIONS["box"], 2).predict({"desired_goal": none})
    with pytest.raises(ValueError, match="takes goals of 4 numbers, the data has 2"):
        GoalConditionedPolicy(VECTOR, data.action_space, 4).check(data)
    for act in (policy.check, policy.loss, policy.model):
        with pytest.raises(ValueError, match="learns from transitions with goals; the data has none"):
            act(demonstrations(action_space=ACTIONS["box"]))


# Scaled inputs


def test_normalize_gives_mean_zero_and_deviation_one_over_the_steps_that_there_are() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, 600)  # several parts
    episodes = []
    for n in lengths:
        x = rng.normal(size=(n + 1, 3)).astype(np.float32) * np.float32([1, 100, 0]) + np.float32([5, -1e4, 0.1])
        x[-1] = 1e6  # where no action was taken
        episodes.append(Episode(x, rng.integers(0, 2, n)))
    data = Demonstrations.from_episodes(episodes, 2)
    policy = RecurrentPolicy(data.observation_space, data.action_space)
    assert torch.equal(policy.scaled(data.observations), data.observations)
    policy.normalize(data)
    values = policy.scaled(data.observations)[data.acted]
    torch.testing.assert_close(values.mean(0), torch.zeros(3), atol=2e-2, rtol=0)
    torch.testing.assert_close(values.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-2, rtol=0)
    given = data.observations[data.acted].double()
    torch.testing.assert_close(policy.factor[:2].double(), 1 / given.std(0, correction=0)[:2], rtol=1e-5, atol=0)
    twin = RecurrentPolicy(data.observation_space, data.action_space)
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.scaled(data.observations), policy.scaled(data.observations))
    eager = ReactivePolicy(data.observation_space, data.action_space, normalize=data)
    torch.testing.assert_close(eager.factor, policy.factor)


# Training


@pytest.mark.parametrize(
    ("kind", "way"), [("reactive", "svi"), ("lstm", "elbo"), ("gru", "loss"), ("seeing lstm", "svi")]
)
def test_every_way_of_training_learns(kind: str, way: str) -> None:
    data = demonstrations(lengths=(4, 4, 4))
    policy: Any = KINDS[kind](VECTOR, ACTIONS["discrete"])
    if way == "svi":
        update: Any = pyro.infer.SVI(policy.model, policy.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    else:
        loss = policy.loss if way == "loss" else Trace_ELBO()(policy, policy.guide)
        update = (loss, torch.optim.Adam(policy.parameters(), lr=1e-2))
    before = float(policy.loss(data).detach())
    result = fit(update, data, steps=60, batch_size=3, progress=False)
    assert result.step == 60 and float(policy.loss(data).detach()) < 0.5 * before
    twin: Any = KINDS[kind](VECTOR, ACTIONS["discrete"])
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.loss(data), policy.loss(data))


# Errors


@pytest.mark.parametrize("kind", ["reactive", "lstm", "discrete memory"])
def test_data_of_another_problem_is_refused_before_training(kind: str) -> None:
    policy: Any = KINDS[kind](VECTOR, ACTIONS["discrete"])
    name = type(policy).__name__
    policy.check(demonstrations())
    cases = [
        (demonstrations(NAMED), f"the {name} takes observations of 3 numbers, the data has 5"),
        (demonstrations(action_space=spaces.Discrete(4)), r"acts in Discrete\(3, start=5\), .* in Discrete\(4\)"),
        (demonstrations(action_space=ACTIONS["multi"]), r"data's actions are in MultiDiscrete"),
    ]
    if kind != "reactive":
        cases.append((demonstrations().transitions(), f"the {name} remembers .* not from Transitions"))
        spaces_ = {"observation_space": VECTOR, "action_space": ACTIONS["discrete"]}
        policy.check(SimpleNamespace(lengths=3, goals=None, **spaces_))  # goals are no sign of single transitions
    update = (policy, torch.optim.Adam(policy.parameters()))
    for data, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(update, data, steps=1, batch_size=1, progress=False)
    assert KINDS[kind](VECTOR, ACTIONS["box"]).check(demonstrations(action_space=ACTIONS["box"])) is None


def test_a_squashed_head_refuses_data_beyond_its_bounds() -> None:
    wide = spaces.Box(-3, 3, (2, 1), np.float32)
    policy = ReactivePolicy(VECTOR, ACTIONS["box"], head="squashed")
    policy.check(demonstrations(action_space=ACTIONS["box"]))
    with pytest.raises(ValueError, match="which does not hold the data's"):
        policy.check(demonstrations(action_space=wide))
    ReactivePolicy(VECTOR, ACTIONS["box"]).check(demonstrations(action_space=wide))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ReactivePolicy, {"head": "categorical"}, "got 'categorical'"),
        (ReactivePolicy, {"activation": "step"}, "one of relu, tanh, got 'step'"),
        (ReactivePolicy, {"hidden": (4, 0)}, "positive sizes"),
        (RecurrentPolicy, {"cell": "rnn"}, "one of lstm, gru, got 'rnn'"),
        (RecurrentPolicy, {"layers": 0}, "positive"),
        (GoalConditionedPolicy, {"goal_size": 0}, "goal_size must be positive"),
        (LatentMemoryPolicy, {"memory": "disc"}, "discrete, gaussian, got 'disc'"),
        (LatentMemoryPolicy, {"size": 0}, "must be positive, got 0"),
        (LatentMemoryPolicy, {"hidden": ()}, "at least one layer"),
        (LatentMemoryPolicy, {"memory": DiscreteMemory(4, 2)}, "the memory sees 4 numbers, observations have 3"),
    ],
)
def test_bad_arguments_are_refused(kind: Callable[..., Policy], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(VECTOR, ACTIONS["box"], **options)


def test_what_a_policy_is_not_for_is_refused() -> None:
    with pytest.raises(TypeError, match="action spaces are"):
        ReactivePolicy(VECTOR, spaces.MultiBinary(2))
    gaussian = LatentMemoryPolicy(VECTOR, ACTIONS["discrete"], memory="gaussian")
    for exact in (gaussian.tables, gaussian.exact_loss):
        with pytest.raises(TypeError, match="only discrete memory has tables, not GaussianMemory"):
            exact(demonstrations())


def test_signatures_tell_policies_apart() -> None:
    made = [
        make(observations, actions)
        for make in KINDS.values()
        for observations in (VECTOR, NAMED)
        for actions in ACTIONS.values()
    ]
    made += [GoalConditionedPolicy(VECTOR, ACTIONS["box"], size) for size in (1, 2)]
    made += [
        ReactivePolicy(VECTOR, ACTIONS["box"], head="mixture"),
        ReactivePolicy(VECTOR, ACTIONS["box"], hidden=(3,)),
        ReactivePolicy(VECTOR, ACTIONS["box"], head="gaussian"),
        ReactivePolicy(VECTOR, ACTIONS["box"], head="squashed"),
        ReactivePolicy(VECTOR, spaces.Box(-9, 9, (2, 1)), head="squashed"),
        ReactivePolicy(VECTOR, ACTIONS["box"], head=MixtureHead(64, 2, components=3)),
        LatentMemoryPolicy(VECTOR, ACTIONS["box"], memory=DiscreteMemory(3, 8, (7,))),
        LatentMemoryPolicy(VECTOR, ACTIONS["box"], memory=DiscreteMemory(3, 8, (64,))),
    ]
    signatures = [policy.signature() for policy in made]
    assert len(set(signatures)) == len(made) and not any("\n" in signature for signature in signatures)
    assert ReactivePolicy(VECTOR, ACTIONS["box"]).signature() == ReactivePolicy(VECTOR, ACTIONS["box"]).signature()
