"""Soft actor-critic from images: shifts, averages over them, who learns the convolutions, stacks of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import pyrocontrol
from pyrocontrol.envs import Demonstrations, Episode, collect, evaluate_policy
from pyrocontrol.guides import GaussianPolicy, ImagePolicy
from pyrocontrol.inference import SQIL, DrQ, ReplayBatch, SequenceBatch, SoftActorCritic, SQILDrQ, learn
from pyrocontrol.inference.control.drq import randomly_shifted
from soft_learners import assert_alike

IMAGE, ACTED = spaces.Box(0, 255, (16, 17, 2), np.uint8), spaces.Box(-2.0, 6.0, (1,))
SMALL: dict[str, Any] = {"hidden": (8,)}


def policy(**options: Any) -> ImagePolicy:
    torch.manual_seed(4)
    return ImagePolicy(IMAGE, ACTED, **{"depth": 4, "features": 5, "hidden": (8,)} | options)


def drq() -> Any:
    return DrQ(policy(), 16 * 17 * 2, 1, **SMALL)


def noise(*lead: int) -> Tensor:
    return torch.randint(256, (*lead, 16, 17, 2), dtype=torch.uint8)


def batch(count: int) -> ReplayBatch:
    ended = (torch.rand(count) < 0.3).float()
    return ReplayBatch(noise(count, 3), 2 * torch.rand(count, 1) - 1, torch.randn(count), noise(count, 3), ended)


def test_shifts_are_crops_of_images_whose_edge_is_repeated() -> None:
    images = noise(40, 3)
    padded = torch.nn.functional.pad(images.permute(0, 1, 4, 2, 3).flatten(1, 2).float(), [2] * 4, mode="replicate")
    padded = padded.unflatten(1, (3, 2)).permute(0, 1, 3, 4, 2)
    found = set()
    for row, shifted in zip(padded, randomly_shifted(images, 2), strict=True):
        crops = {(y, x): row[:, y : y + 16, x : x + 17] for y in range(5) for x in range(5)}
        (place,) = (place for place, crop in crops.items() if torch.equal(crop, shifted.float()))
        found.add(place)
    assert {y for y, _ in found} == {x for _, x in found} == {0, 1, 2, 3, 4} and len(found) > 12
    assert torch.equal(randomly_shifted(images, 0), images)


def test_targets_are_the_mean_over_shifts_and_the_policy_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, given = drq(), batch(6)
    calls: dict[str, Any] = {}

    def loss(self: Any, batch: ReplayBatch) -> Any:
        calls["batch"] = batch
        torch.manual_seed(0)
        calls["mean"] = self.soft_target(batch)
        torch.manual_seed(0)
        calls["each"] = SoftActorCritic.soft_target(self, batch)
        return torch.zeros(()), {}

    with monkeypatch.context() as patched:
        patched.setattr(SoftActorCritic, "loss", loss)
        learner.loss(given)
    seen = calls["batch"]
    assert len(seen.rewards) == 12 and torch.equal(seen.actions, given.actions.repeat(2, 1))
    assert not torch.equal(seen.observations[:6], seen.observations[6:])  # shifted anew
    each = calls["each"].unflatten(0, (2, 6))
    assert (each[0] - each[1]).abs().max() > 1e-4
    torch.testing.assert_close(calls["mean"], each.mean(0).repeat(2))
    observed: list[Tensor] = []
    gradient = learner.gradient
    learner.gradient = lambda own, images, alpha: observed.append(images) or gradient(own, images, alpha)
    learner.loss(given)
    assert len(observed[0]) == 6


def test_critics_learn_the_convolutions_and_the_policy_does_not() -> None:
    learner, given = drq(), batch(6)
    shared = [*learner.policy.convolutions.parameters()]
    assert all(one is other for one, other in zip(shared, learner.critics.convolutions.parameters(), strict=True))
    assert len({*map(id, learner.learnt)}) == len(learner.learnt)
    learner.policy_loss(given.observations, learner.alpha)[0].backward()
    assert all(weight.grad is None for weight in (*shared, *learner.critics.parameters()))
    assert all(weight.grad.abs().max() > 0 for weight in learner.policy.reading.parameters())
    learner.critics(given.observations, given.actions).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in shared)
    before = [weight.clone() for weight in learner.target.convolutions.parameters()]
    learner.step(given)
    after = [*learner.target.convolutions.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    learner.move(learner.target.parameters(), learner.critics.parameters(), 0)
    for old, new, aim in zip(before, after, shared, strict=True):
        torch.testing.assert_close(new, old + 0.01 * (aim - old))


def test_windows_are_transitions_of_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = drq()
    seen: list[Any] = []
    monkeypatch.setattr(learner, "step", lambda batch: seen.append(batch) or {})
    images, first = noise(5, 4), torch.zeros(5, 4, dtype=torch.bool)
    steps = SequenceBatch(images, torch.rand(5, 4, 1), torch.rand(5, 4), first, torch.rand(5, 4))
    learner.update(steps)
    expected = images[:, :3], steps.actions[:, 2], steps.rewards[:, 2], images[:, 1:], steps.terminated[:, 2]
    assert all(torch.equal(*pair) for pair in zip(seen[0], expected, strict=True))


def test_it_acts_by_the_last_images() -> None:
    learner = drq()
    own, images = learner.policy, noise(4)
    stacks = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    state, begins = None, True
    for image, stack in zip(images, stacks, strict=True):
        expected = own.mode(images[stack]).detach()
        np.testing.assert_allclose(learner.act(image.numpy(), deterministic=True), expected, atol=1e-6)
        action, state = own.predict(image.numpy(), state, begins, deterministic=True)
        np.testing.assert_allclose(action, 2 + 4 * expected, atol=1e-5)
        begins = False
    again = learner.act(images[0].numpy(), deterministic=True)
    learner.begin(0)
    np.testing.assert_allclose(learner.act(images[0].numpy(), deterministic=True), own.mode(images[[0, 0, 0]]).detach())
    assert not np.allclose(again, own.mode(images[[0, 0, 0]]).detach(), atol=1e-7)
    # A batch of two episodes, the second of which begins anew.
    twice, _ = own.predict(images[[2, 2]].numpy(), tuple(part.repeat(2, *[1] * (part.dim() - 1)) for part in state),
                           np.array([False, True]), deterministic=True)  # fmt: skip
    np.testing.assert_allclose(twice[1], 2 + 4 * own.mode(images[[2, 2, 2]]).detach(), atol=1e-5)
    np.testing.assert_allclose(twice[0], 2 + 4 * own.mode(images[[2, 3, 2]]).detach(), atol=1e-5)


# From demonstrations


class Dot(gymnasium.Env[Any, Any]):
    """A bright column of an image, which an action between -2 and 6 moves by up to 3, for 8 steps; it belongs left."""

    observation_space, action_space = IMAGE, ACTED

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.x = 0, float(self.np_random.uniform(4, 16))
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        image = np.zeros(IMAGE.shape, np.uint8)
        image[:, int(self.x)] = 255
        return image

    def step(self, action: Any) -> Any:
        self.steps, self.x = self.steps + 1, min(max(self.x + 0.75 * (float(action[0]) - 2), 0), 16.9)
        return self.observe(), -self.x, False, self.steps == 8, {}


def demonstrations(seed: int = 0) -> Demonstrations:
    return collect(Dot(), lambda image: np.array([-1.5], np.float32), 2, seed=seed, progress=False)


def make(shown: Demonstrations | None = None, **options: Any) -> Any:
    return SQILDrQ(policy(), shown or demonstrations(), **SMALL | {"lr": 1e-3} | options)


def test_demonstrated_images_are_stacked_within_their_traces() -> None:
    learner, shown = make(), demonstrations()
    drawn = learner.demonstrated(400)
    assert drawn.observations.dtype == torch.uint8
    images = shown.observations.unflatten(-1, IMAGE.shape)
    expected = []
    for trace in images:
        for step in range(8):
            stack = [max(step + back, 0) for back in (-2, -1, 0, 1)]
            expected.append(trace[stack].flatten())
    found = torch.cat([drawn.observations, drawn.next_observations[:, 2:]], 1).flatten(1)
    assert torch.equal(found.unique(dim=0), torch.stack(expected).unique(dim=0))
    assert torch.equal(drawn.next_observations[:, :2], drawn.observations[:, 1:])
    assert not drawn.terminated.any() and drawn.actions.unique().tolist() == [-0.875]


def test_a_run_from_images_resumes_to_the_same_bits_and_is_loaded(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 8, "start": 20, "progress": False, "checkpoint_every": 10}
    straight, first, resumed = make(), make(), make()
    learn(straight, Dot(), steps=47, **options)
    learn(first, Dot(), steps=29, out=tmp_path, **options)  # in the middle of an episode
    learn(resumed, Dot(), steps=47, out=tmp_path, **options)
    assert_alike(straight, resumed, rtol=0, atol=0)
    torch.testing.assert_close(straight.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    straight.policy.save(tmp_path / "policy.pt")
    returns = [
        evaluate_policy(Dot(), given, 3)["return"]
        for given in (straight.policy, *(pyrocontrol.load(tmp_path / name) for name in ("policy.pt", "checkpoint.pt")))
    ]
    assert returns[0] == returns[1] == returns[2]
    with pytest.raises(ValueError, match="demonstrations="):
        learn(make(demonstrations(1)), Dot(), steps=50, out=tmp_path, **options)


def test_bad_images_are_refused() -> None:
    def shown(seen: Any, acted: Any = ACTED) -> Demonstrations:
        trace = Episode(np.zeros((3, *seen.shape), seen.dtype), np.zeros((2, *acted.shape), np.float32))
        return Demonstrations.from_episodes([trace], acted, seen)

    for wrong, message in (
        (shown(spaces.Box(0, 255, (17, 16, 2), np.uint8)), "the demonstrations are of Box.*, the policy's images of"),
        (shown(spaces.Box(0.0, 255.0, (16, 17, 2))), "the demonstrations are of Box.*float32.*, the policy's images"),
        (shown(spaces.Box(0, 255, (16, 16, 2), np.uint8)), "the demonstrations have 512 observation numbers"),
        (shown(IMAGE, spaces.Box(-1.0, 1.0, (1,))), "the actions of the demonstrations are in .*, the policy's in"),
    ):
        with pytest.raises(ValueError, match=message):
            make(wrong)
    with pytest.raises(TypeError, match="SQILDrQ learns an ImagePolicy, not a GaussianPolicy"):
        SQILDrQ(GaussianPolicy(16 * 17 * 2, 1), demonstrations())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fixed_latent must be False"):
        make(fixed_latent=True)
    for space in (spaces.Box(0.0, 255.0, (16, 16, 3)), spaces.Box(0, 255, (16, 16), np.uint8)):
        with pytest.raises(ValueError, match=r"must be a Box of bytes \[H, W, C\], one image, not"):
            ImagePolicy(space, ACTED)
    with pytest.raises(ValueError, match="at least 15 pixels a side, not \\[14, 20\\]"):
        ImagePolicy(spaces.Box(0, 255, (14, 20, 3), np.uint8), ACTED)


def test_the_environment_has_the_bounds_of_the_demonstrations(tmp_path: Path) -> None:
    env = gymnasium.wrappers.RescaleAction(Dot(), np.float32(-1), np.float32(1))
    vectors = gymnasium.wrappers.FlattenObservation(Dot())
    flat = collect(vectors, lambda image: np.array([-1.5], np.float32), 1, progress=False)
    plain = SQIL(GaussianPolicy(16 * 17 * 2, 1, **SMALL), flat, **SMALL)
    for learner, given in ((make(), env), (plain, gymnasium.wrappers.FlattenObservation(env))):
        with pytest.raises(ValueError, match=r"acts in Box\(-2.0, 6.0.*, the environment in Box\(-1.0, 1.0"):
            learn(learner, given, steps=30, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="the ImagePolicy acts in"):
        evaluate_policy(env, policy(), 1)
