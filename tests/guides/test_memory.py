"""The guide over memory: it sees the whole demonstration, and nothing after its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from pyro.infer import SVI, Trace_ELBO

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.guides import CallStackGuide, LSTMEncoder, MemoryGuide, make_encoder
from pyrocontrol.inference import StepwiseKL_ELBO, fit, forward_log_likelihood
from pyrocontrol.models import ControlProgram, LatentMemoryPolicy

ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}
MEMORIES = ["discrete", "gaussian"]
ENCODERS = ["bilstm", "lstm", "transformer"]


def demonstrations(actions: str = "discrete", lengths: tuple[int, ...] = (4, 2, 5)) -> Demonstrations:
    space = ACTIONS[actions]
    space.seed(0)
    rng = np.random.default_rng(0)
    episodes = [
        Episode(rng.normal(size=(n + 1, 3)).astype(np.float32), np.stack([space.sample() for _ in range(n)]))
        for n in lengths
    ]
    return Demonstrations.from_episodes(episodes, space)


def policy_for(data: Demonstrations, memory: str = "discrete", **options: Any) -> LatentMemoryPolicy:
    return LatentMemoryPolicy(data.observation_space, data.action_space, memory=memory, size=3, **options)


@pytest.mark.parametrize(
    ("encoder", "memory", "actions"),
    [
        *(("bilstm", "discrete", "discrete"), ("lstm", "discrete", "multi"), ("transformer", "discrete", "box")),
        *(("bilstm", "gaussian", "box"), ("lstm", "gaussian", "discrete"), ("transformer", "gaussian", "multi")),
    ],
)
def test_padding_changes_nothing(encoder: str, memory: str, actions: str) -> None:
    data = demonstrations(actions)
    guide = MemoryGuide(policy_for(data, memory), encoder, encoder_size=4)
    z = guide.posterior(data).sample()
    together = guide.posterior(data).step_log_prob(z)
    greedy = guide.infer(data)
    for row in range(len(data)):
        one, steps = data[[row]], int(data.lengths[row]) - 1
        torch.testing.assert_close(guide.posterior(one).step_log_prob(z[[row], :steps])[0], together[row, :steps])
        assert (together[row, steps:] == 0).all()
        torch.testing.assert_close(guide.infer(one)[0], greedy[row, :steps])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_it_sees_of_the_demonstration(encoder: str) -> None:
    data = demonstrations(lengths=(6, 6))
    guide = MemoryGuide(policy_for(data), encoder, encoder_size=4)
    z = guide.posterior(data).sample()
    before = guide.posterior(data).step_log_prob(z)
    actions, observations = data.actions.clone(), data.observations.clone()
    actions[0, 3] = (actions[0, 3] + 1) % 3
    observations[1, 3] += 1.0
    after = guide.posterior(data._replace(actions=actions, observations=observations)).step_log_prob(z)
    changed = (before - after).abs() > 0
    assert changed[:, 3:].all()
    # The causal one filters; the others smooth.
    assert changed[:, :3].any() == (encoder != "lstm")


@pytest.mark.parametrize(("memory", "validate"), [("discrete", True), ("gaussian", False)])
def test_the_elbos_agree_and_stay_below_the_likelihood(memory: str, validate: bool) -> None:
    data = demonstrations().to(dtype=torch.float64)
    policy = policy_for(data, memory).double()
    guide = MemoryGuide(policy).double()
    values, errors = [], []
    with pyro.validation_enabled(validate):
        for elbo in (StepwiseKL_ELBO, Trace_ELBO):
            loss = elbo(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
            drawn = torch.tensor([-loss.loss(policy, guide, data) for _ in range(8)])
            values.append(float(drawn.mean()))
            errors.append(float(drawn.std()) / 8**0.5)
    assert abs(values[0] - values[1]) < 5 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    if memory == "discrete":
        exact = float(forward_log_likelihood(*policy.tables(data)).sum().detach())
        assert max(values) < exact and exact - values[0] < 5


@pytest.mark.parametrize(("memory", "way"), [("discrete", "module"), ("gaussian", "svi")])
def test_training_reaches_policy_and_guide(memory: str, way: str) -> None:
    data = demonstrations()
    policy = policy_for(data, memory)
    guide = MemoryGuide(policy, encoder_size=4)
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in policy.parameters()}
    if way == "svi":
        update: Any = SVI(policy.model, guide, pyro.optim.Adam({"lr": 1e-3}), StepwiseKL_ELBO())
    else:
        loss = StepwiseKL_ELBO()(policy, guide)
        update = (loss, torch.optim.Adam(loss.parameters(), lr=1e-3))
    before = [p.detach().clone() for p in (*policy.parameters(), *guide.parameters())]
    fit(update, data, steps=2, batch_size=2, progress=False)
    assert all(
        not torch.equal(old, new) for old, new in zip(before, (*policy.parameters(), *guide.parameters()), strict=True)
    )


def test_vectorised_particles_of_either_memory_give_the_same_bound() -> None:
    data = demonstrations()
    for memory in MEMORIES:
        policy = policy_for(data, memory)
        guide = MemoryGuide(policy)
        together = StepwiseKL_ELBO(num_particles=150, vectorize_particles=True, max_plate_nesting=1)
        apart = StepwiseKL_ELBO(num_particles=150)
        values = [elbo.loss(policy, guide, data) for elbo in (together, apart)]
        assert values[0] == pytest.approx(values[1], rel=0.05)


def test_an_encoder_of_ones_own() -> None:
    data = demonstrations()
    policy = policy_for(data)
    own = LSTMEncoder(MemoryGuide(policy).input_size, 5)
    guide = MemoryGuide(policy, own)
    assert guide.encoder is own and guide.process.context_size == 5
    assert StepwiseKL_ELBO().loss(policy, guide, data) > 0
    assert guide.signature() != MemoryGuide(policy).signature()
    assert MemoryGuide(policy, encoder_size=5).signature() != MemoryGuide(policy).signature()


def test_an_unknown_encoder_is_refused_by_every_guide() -> None:
    data = demonstrations()
    program = ControlProgram("actions: left, right\nwalk -> left, right", 3)
    for make in (
        lambda: MemoryGuide(policy_for(data), "gru"),
        lambda: CallStackGuide(program, "gru"),
        lambda: make_encoder("gru", 3, 4),
    ):
        with pytest.raises(ValueError, match="encoder must be one of bilstm, lstm, transformer, mlp, got 'gru'"):
            make()
