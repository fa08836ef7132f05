"""Whether memory is learnt: a signal is seen at the first step, and decides the action four steps later."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrocontrol.envs import Demonstrations
from pyrocontrol.guides import MemoryGuide
from pyrocontrol.inference import StepwiseKL_ELBO, fit, forward_log_likelihood
from pyrocontrol.models import LatentMemoryPolicy, ReactivePolicy, RecurrentPolicy

SIGNALS, STEPS = 2, 5
ROWS = 32


def task() -> Demonstrations:
    """Observations: the signal, one-hot, at step 0; whether this is the last step. Actions: 0, and last 1 + signal."""
    signal = torch.arange(ROWS) % SIGNALS
    observations = torch.zeros(ROWS, STEPS + 1, SIGNALS + 1)
    observations[torch.arange(ROWS), 0, signal] = 1.0
    observations[:, STEPS - 1, SIGNALS] = 1.0
    actions = torch.zeros(ROWS, STEPS + 1, dtype=torch.long)
    actions[:, STEPS - 1] = 1 + signal
    actions[:, STEPS] = 1 + SIGNALS  # null
    return Demonstrations(observations, actions, torch.full((ROWS,), STEPS + 1), 1 + SIGNALS)


def success(policy: Any, data: Demonstrations, deterministic: bool) -> float:
    """The share of traces in which a policy, acting on its own, takes every action of the teacher's."""
    state, taken = None, []
    for t in range(STEPS):
        action, state = policy.predict(data.observations[:, t].numpy(), state, None, deterministic)
        taken.append(torch.as_tensor(action))
    return float((torch.stack(taken, 1) == data.actions[:, :-1]).all(1).float().mean())


def learn(loss: Any, data: Demonstrations, seed: int, steps: int = 300) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    with pyro.validation_enabled(False):
        fit((loss, optimizer), data, steps=steps, batch_size=16, seed=seed, progress=False)


@pytest.mark.parametrize(("memory", "seed"), [("discrete", 1), ("gaussian", 0)])
def test_latent_memory_is_learnt(memory: str, seed: int) -> None:
    pyro.set_rng_seed(seed)
    data = task()
    policy = LatentMemoryPolicy(data.observation_space, data.action_space, memory=memory, size=4)
    guide = MemoryGuide(policy)
    elbo = StepwiseKL_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    learn(elbo(policy, guide), data, seed)
    assert success(policy, data, True) > 0.95 and success(policy, data, False) > 0.9
    if memory == "discrete":
        with torch.no_grad():
            exact = forward_log_likelihood(*policy.tables(data))
        assert -0.1 < float(exact.mean()) < 0 and exact.shape == (ROWS,)
        # The memory itself says the signal, all along.
        inferred = guide.infer(data)
        assert (inferred[0::2] == inferred[0]).all() and (inferred[1::2] == inferred[1]).all()
        assert (inferred[0] != inferred[1]).all()


def test_a_reactive_policy_cannot_and_a_recurrent_one_can() -> None:
    data = task()
    for kind, expected in ((ReactivePolicy, 0.5), (RecurrentPolicy, 1.0)):
        pyro.set_rng_seed(0)
        policy: Any = kind(data.observation_space, data.action_space)
        learn(Trace_ELBO()(policy, policy.guide), data, 0, 150)
        assert success(policy, data, True) == pytest.approx(expected, abs=0.05)
