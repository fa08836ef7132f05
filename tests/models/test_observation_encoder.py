"""What is read of observations: which numbers are scaled, which parts are images, and that these can be learnt from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from pyrocontrol.guides import CallStackGuide, MemoryGuide
from pyrocontrol.inference import StepwiseKL_ELBO
from pyrocontrol.models import (
    ControlProgram,
    LatentMemoryPolicy,
    ObservationEncoder,
    ReactivePolicy,
    RecurrentController,
    RecurrentPolicy,
    flatten_observations,
)
from pyrocontrol.models.observation_encoder import ImageNetwork

CAMERA = spaces.Box(0, 255, (16, 20, 3), np.uint8)
ROBOT = spaces.Dict(arm=spaces.Box(-1, 1, (2,), np.float32), camera=CAMERA, gripper=spaces.Discrete(2))


def test_whole_numbers_are_scaled_by_their_bounds_and_no_others() -> None:
    parts = {
        "bytes": spaces.Box(0, 255, (2,), np.uint8),
        "counts": spaces.Box(np.array([-5, 10, 7]), np.array([5, 30, 7]), dtype=np.int64),  # 7 does not vary
        "unbounded": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
        "numbers": spaces.Box(0, 255, (1,), np.float32),
        "one-hot": spaces.Discrete(2),
    }
    space = spaces.Tuple(parts.values())
    given = torch.tensor([0, 255, -5, 20, 7, 9, 200, 0, 1.0])
    encoder = ObservationEncoder(space)
    expected = torch.tensor([0, 1, 0, 0.5, 7, 9, 200, 0, 1])
    torch.testing.assert_close(encoder(given), expected)
    assert torch.equal(ObservationEncoder(space, scale_images=False)(given), given)
    assert encoder.groups == (1,) * 9 and not encoder.state_dict() and not encoder.plain
    unscaled = ObservationEncoder(space, scale_images=False)
    for own, scaled in (("auto", expected), (encoder, expected), (unscaled, given), (nn.Linear(9, 2), given)):
        policy = ReactivePolicy(space, spaces.Discrete(2), encoder=own)
        torch.testing.assert_close(policy.scaled(given), scaled)
        if own != unscaled and not isinstance(own, nn.Linear):
            torch.testing.assert_close(policy.encoded(given), expected)


@pytest.mark.parametrize(
    ("space", "auto", "cnn"),
    [
        (CAMERA, True, True),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), True, True),
        (spaces.Box(0, 255, (64, 64), np.uint8), True, True),
        (spaces.Box(0, 1, (16, 16, 1), np.float32), False, True),
        (spaces.Box(0, 255, (8, 9, 3), np.uint8), False, True),
        (spaces.Box(0, 255, (3, 8, 100), np.uint8), False, True),
        (spaces.Box(0, 255, (5, 5, 3), np.uint8), False, False),
        (spaces.Box(0, 255, (128,), np.uint8), False, False),
    ],
    ids=str,
)
def test_which_parts_are_images(space: spaces.Box, auto: bool, cnn: bool) -> None:
    size = int(np.prod(space.shape))
    assert ObservationEncoder(space, features=7).size == (7 if auto else size)
    assert ObservationEncoder(space, "flat", features=7).size == size
    if not cnn:
        with pytest.raises(ValueError, match="no image of at least 8 pixels a side"):
            ObservationEncoder(space, "cnn")
        return
    encoder = ObservationEncoder(space, "cnn", features=7)
    found = encoder(torch.as_tensor(space.sample()).flatten().expand(2, 3, -1))
    assert found.shape == (2, 3, 7) and encoder.groups == (7,) and found.dtype == torch.float32


@pytest.mark.parametrize(("shape", "turn"), [((9, 12, 3), (1, 2, 0)), ((9, 12), (0, 1))])
def test_an_image_is_read_as_it_lies(shape: tuple[int, ...], turn: tuple[int, ...]) -> None:
    """Channels first or last, it is the same image to the same weights."""
    image = torch.rand(2, *shape)
    one = ImageNetwork(shape, 4)
    first = image.movedim(-1, 1) if len(shape) == 3 else image.unsqueeze(1)
    other = ImageNetwork(tuple(first.shape[1:]), 4)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(image.flatten(1)), other(first.flatten(1)))
    torch.testing.assert_close(one(image.flatten(1)), one.network(first))


def test_parts_that_are_no_images_pass_beside_them() -> None:
    encoder = ObservationEncoder(ROBOT, features=6)
    observation = ROBOT.sample()
    flat = torch.as_tensor(flatten_observations(ROBOT, observation))
    found = encoder(flat)
    assert encoder.groups == (1, 1, 6, 1, 1) and encoder.size == len(found) == 10
    torch.testing.assert_close(found[:2], torch.as_tensor(observation["arm"]))
    torch.testing.assert_close(
        found[2:8],
        encoder.parts[1](  # type: ignore[index]
            torch.as_tensor(observation["camera"]).flatten() / 255
        ),
    )
    assert found[8:].argmax() == observation["gripper"]


@pytest.mark.parametrize("encoder", ["flat", "cnn"])
def test_images_can_be_learnt_from_as_bytes(encoder: str) -> None:
    """Whether the upper half of an image is brighter than the lower."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, *CAMERA.shape), dtype=torch.uint8)
    images[:100, :8] //= 2
    halves = images.float().unflatten(1, (2, 8)).mean((2, 3, 4))
    data: Any = SimpleNamespace(observations=images.flatten(1), actions=(halves[:, 0] > halves[:, 1]).long())
    policy = ReactivePolicy(CAMERA, spaces.Discrete(2), encoder=encoder)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        policy.loss(data).backward()
        optimizer.step()
    chosen = policy.predict(images.numpy(), deterministic=True)[0]
    assert (chosen == data.actions.numpy()).mean() > 0.97


class Traces:
    """Two traces of images, as bytes."""

    lengths = torch.tensor([3, 2])
    observations = torch.randint(0, 256, (2, 3, 16 * 20 * 3), dtype=torch.uint8)
    actions = torch.tensor([[0, 1, 2], [1, 2, 2]])
    acted = actions < 2
    terminated = torch.ones(2, dtype=torch.bool)
    task, arguments, calls, num_actions = torch.zeros(2, 0), torch.zeros(2, 3, 0), None, 2
    action_space, observation_space = spaces.Discrete(2), CAMERA


@pytest.mark.parametrize("kind", ["recurrent policy", "latent memory", "program", "recurrent controller"])
def test_whatever_reads_observations_reads_images(kind: str) -> None:
    model: Any
    traces: Any = Traces()
    known = {"observation_space": CAMERA, "action_space": spaces.Discrete(2)}
    if kind == "program":
        model = ControlProgram("actions: a, b\nroot -> a, b", **known)
        guide: Any = CallStackGuide(model, encoder_size=4)
        assert guide.input_size == 128 + 5 and model.groups == (128,)
    elif kind == "recurrent controller":
        model = RecurrentController(layers=1, hidden=4, **known)
        guide = model.guide
    elif kind == "latent memory":
        model = LatentMemoryPolicy(**known)
        guide = MemoryGuide(model, encoder_size=4)
    else:
        model = RecurrentPolicy(**known)
        guide = model.guide
    model.check(traces)
    loss = StepwiseKL_ELBO()(model, guide)
    loss(traces).backward()
    images = next(module for module in model.modules() if isinstance(module, ImageNetwork))
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in images.parameters())
    assert "ObservationEncoder" in model.signature()
    assert model.predict(CAMERA.sample())[0] in model.action_space


def test_an_encoder_of_ones_own() -> None:
    space: gymnasium.Space[Any] = spaces.Box(-1, 1, (3,), np.float32)
    own = nn.Linear(3, 4)
    policy = ReactivePolicy(space, spaces.Discrete(2), encoder=own)
    assert policy.encoded_size == 4 and "encoder=Linear(in_features=3" in policy.signature()
    x = torch.randn(5, 3)
    torch.testing.assert_close(policy.distribution(x).logits, policy.head(policy.network(own(x))).logits)
    for other in (nn.Linear(2, 4), ObservationEncoder(spaces.Discrete(4))):
        with pytest.raises(ValueError, match="the encoder does not take observations of width 3"):
            ReactivePolicy(space, spaces.Discrete(2), encoder=other)
    with pytest.raises(ValueError, match="one of auto, cnn, flat, or a module, got 'resnet'"):
        ReactivePolicy(space, spaces.Discrete(2), encoder="resnet")
