"""The guide over a trajectory's embedding: attention by hand, padding, its variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pyrocontrol.envs import Demonstrations, Episode
from pyrocontrol.guides import LSTMEncoder, TrajectoryEncoder, TrajectoryGuide
from pyrocontrol.models import TrajectoryCVAE

KINDS = [("bilstm", "attention"), ("transformer", "attention"), ("mlp", "mean"), ("lstm", "mean")]
every = pytest.mark.parametrize(("encoder", "pooling"), KINDS)


def demonstrations(lengths: tuple[int, ...] = (4, 2, 6)) -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(rng.normal(size=(n + 1, 3)).astype(np.float32), rng.uniform(-1, 1, (n, 2)).astype(np.float32))
        for n in lengths
    ]
    return Demonstrations.from_episodes(episodes, spaces.Box(-1, 1, (2,), np.float32))


def skills_for(data: Demonstrations) -> TrajectoryCVAE:
    return TrajectoryCVAE(data.observation_space, data.action_space, latent=3, hidden=(8,))


@every
def test_padding_changes_nothing(encoder: str, pooling: str) -> None:
    data = demonstrations()
    guide = TrajectoryGuide(skills_for(data), encoder, pooling=pooling, encoder_size=4)
    together = guide.posterior(data)
    assert together.batch_shape == (3,) and together.event_shape == (3,)
    for row in range(3):
        alone = guide.posterior(data[[row]])
        torch.testing.assert_close(alone.mean[0], together.mean[row])
        torch.testing.assert_close(alone.stddev[0], together.stddev[row])


@every
def test_it_reads_every_state_and_no_action(encoder: str, pooling: str) -> None:
    data = demonstrations((5,))
    skills = skills_for(data)
    guide = TrajectoryGuide(skills, encoder, pooling=pooling, encoder_size=4)
    states = skills.scaled(data.observations).requires_grad_()
    (gradient,) = torch.autograd.grad(guide.encode(states, data.lengths).mean.sum(), states)
    assert (gradient != 0).any(-1).all()


def test_attention_by_hand() -> None:
    own = TrajectoryEncoder(3, 2, "lstm", encoder_size=4)
    x = torch.randn(1, 5, 3)
    contexts = own.encoder(x, torch.tensor([3]))[0, :3]
    assert own.attention is not None
    alpha = (contexts.tanh() @ own.attention.weight[0]).softmax(0)
    torch.testing.assert_close(own.weights(own.encoder(x, torch.tensor([3])), torch.tensor([3]))[0, :3], alpha)
    expected = own.head((alpha @ contexts).tanh().unsqueeze(0))
    torch.testing.assert_close(own(x, torch.tensor([3])).mean, expected.mean)


def test_mean_pooling_weighs_steps_alike() -> None:
    own = TrajectoryEncoder(3, 2, "mlp", pooling="mean", encoder_size=4)
    weights = own.weights(torch.randn(2, 4, own.encoder.size), torch.tensor([4, 2]))
    assert weights.tolist() == [[0.25] * 4, [0.5, 0.5, 0, 0]]


def test_a_fresh_encoder_shares_the_kind_and_no_weights() -> None:
    guide = TrajectoryGuide(skills_for(demonstrations()), "mlp", pooling="mean", encoder_size=4)
    other = guide.fresh_encoder(extra=2)
    assert other.input_size == 5 and other.pooling == "mean"
    assert not set(map(id, other.parameters())) & set(map(id, guide.parameters()))
    assert other(torch.zeros(1, 4, 5), torch.tensor([4])).event_shape == (3,)


def test_an_encoder_of_ones_own() -> None:
    data = demonstrations()
    guide = TrajectoryGuide(skills_for(data), LSTMEncoder(3, 4))
    assert guide.posterior(data).batch_shape == (3,) and "LSTMEncoder" in guide.signature()
    with pytest.raises(ValueError, match="a LSTMEncoder made elsewhere cannot be made again here"):
        guide.fresh_encoder()


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="encoder must be one of .*mlp, got 'gru'"):
        TrajectoryEncoder(3, 2, "gru")
    with pytest.raises(ValueError, match="pooling must be one of attention, mean, got 'max'"):
        TrajectoryEncoder(3, 2, pooling="max")


def test_the_model_is_not_the_guides() -> None:
    guide = TrajectoryGuide(skills_for(demonstrations()))
    assert not set(map(id, guide.skills.parameters())) & set(map(id, guide.parameters()))
