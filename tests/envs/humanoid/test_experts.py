"""The humanoid's experts and assisted playback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrocontrol.envs import DeepMimicEnv, HumanoidMotion
from pyrocontrol.envs.humanoid import experts
from pyrocontrol.envs.humanoid.deep_mimic import ACTION_HIGH, ACTION_LOW
from pyrocontrol.envs.humanoid.experts import COMPOSITES, EXPERT_SKILLS, AssistedPlayback, DeepMimicExpert
from pyrocontrol.envs.humanoid.motion import BALL_STARTS, bullet_data


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.humanoid.motion.importlib.util.find_spec", lambda name: None)
    for call in (lambda: DeepMimicExpert("walk"), lambda: AssistedPlayback("kick")):
        with pytest.raises(ModuleNotFoundError, match=r"pybullet is missing: pip install pybullet"):
            call()


@pytest.fixture
def bullet() -> Any:
    return pytest.importorskip("pybullet")


pytestmark_bullet = pytest.mark.usefixtures("bullet")


def rewards(motion: str, actor: Any, steps: int, **arguments: Any) -> list[float]:
    env = DeepMimicEnv(motion, **arguments)
    observation, _ = env.reset()
    found: list[float] = []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(actor.predict(observation)[0])
        found.append(reward)
        if terminated or truncated:
            break
    return found


# ---------------------------------------------------------------------- experts


def layers(hidden: tuple[int, ...] = (5, 3), seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a small policy."""
    rng = np.random.default_rng(seed)
    tensors, width = {}, 197
    for index, size in enumerate((*hidden, 36)):
        layer = "dense" if index == len(hidden) else f"{index}/dense"
        tensors[f"agent/main/actor/{layer}/kernel"] = rng.normal(size=(width, size)).astype(np.float32) / 10
        tensors[f"agent/main/actor/{layer}/bias"] = rng.normal(size=size).astype(np.float32) / 10
        width = size
    for name, size in (("s_norm", 197), ("a_norm", 36)):
        tensors[f"agent/resource/{name}/mean"] = rng.normal(size=size).astype(np.float32) / 10
        tensors[f"agent/resource/{name}/std"] = rng.uniform(0.5, 2, size).astype(np.float32)
    return tensors


def loaded(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, np.ndarray], noise: float = 0.05) -> DeepMimicExpert:
    """An expert of a checkpoint with these tensors; reading files is tested elsewhere."""
    monkeypatch.setattr(experts, "read_tensor_bundle", lambda path: tensors)
    return DeepMimicExpert.load("mine.ckpt", noise=noise)


def test_a_policy_is_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = layers()
    observation = np.random.default_rng(1).normal(size=197).astype(np.float32)
    value = (observation - tensors["agent/resource/s_norm/mean"]) / tensors["agent/resource/s_norm/std"]
    for layer in ("0/dense", "1/dense", "dense"):
        value = value @ tensors[f"agent/main/actor/{layer}/kernel"] + tensors[f"agent/main/actor/{layer}/bias"]
        if layer != "dense":
            value = value.clip(min=0)
    value = value * tensors["agent/resource/a_norm/std"] + tensors["agent/resource/a_norm/mean"]
    action, state = loaded(monkeypatch, tensors).predict(observation, "as it was")
    np.testing.assert_allclose(action, value.clip(ACTION_LOW, ACTION_HIGH), rtol=1e-5, atol=1e-6)
    assert action.dtype == np.float32 and state == "as it was"


def test_batches_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = layers()
    expert = loaded(monkeypatch, tensors, noise=0.1)
    observations = np.random.default_rng(1).normal(size=(3, 197)).astype(np.float32)
    batch, _ = expert.predict(observations)
    for observation, action in zip(observations, batch, strict=True):
        np.testing.assert_allclose(expert.predict(observation)[0], action, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    repeated = np.repeat(observations[:1], 4000, 0)
    noisy, _ = expert.predict(repeated, deterministic=False)
    wide = (batch[0] > ACTION_LOW + 1) & (batch[0] < ACTION_HIGH - 1)  # of the angles, far from what is clipped
    spread = (noisy - batch[0]).std(0) / tensors["agent/resource/a_norm/std"]
    assert wide.sum() > 5 and np.allclose(spread[wide], 0.1, rtol=0.1)
    torch.manual_seed(0)
    np.testing.assert_array_equal(expert.predict(repeated, deterministic=False)[0], noisy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_observations_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    observations = np.zeros((2, 197))
    observations[1, 100] = bad
    expert = loaded(monkeypatch, layers())
    for seen in (observations, observations[1]):
        with pytest.raises(ValueError, match="the observation is NaN or infinite"):
            expert.predict(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"agent/main/actor/1/dense/bias": None}, "has no tensor agent/main/actor/1/dense/bias", id="missing"
        ),
        pytest.param(
            {"agent/resource/s_norm/mean": np.zeros(227, np.float32)},
            r"agent/resource/s_norm/mean has shape \[227\], expected \[197\]",
            id="other-state",
        ),
        pytest.param(
            {"agent/main/actor/dense/kernel": np.zeros((3, 28), np.float32)},
            r"dense/kernel has shape \[3, 28\], expected \[3, 36\]",
            id="other-actions",
        ),
        pytest.param(
            {"agent/main/actor/1/dense/kernel": np.zeros((6, 3), np.float32)}, r"expected \[5, any\]", id="other-width"
        ),
        pytest.param(
            {"agent/resource/a_norm/std": np.full(36, np.nan, np.float32)},
            "a_norm/std holds a number that is NaN",
            id="nan",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    tensors = {name: value for name, value in (layers() | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"mine.ckpt.*{message}"):
        loaded(monkeypatch, tensors)


@pytestmark_bullet
@pytest.mark.parametrize("damage", ["truncated index", "truncated shard", "compressed"])
def test_damaged_bundles_are_refused(tmp_path: Path, damage: str) -> None:
    source = bullet_data() / "data/policies/humanoid3d"
    for name in ("humanoid3d_walk.ckpt.index", "humanoid3d_walk.ckpt.data-00000-of-00001"):
        shutil.copy(source / name, tmp_path)
    index, shard = tmp_path / "humanoid3d_walk.ckpt.index", tmp_path / "humanoid3d_walk.ckpt.data-00000-of-00001"
    if damage == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:3_000_000])
        message = "data-00000-of-00001 is truncated"
    elif damage == "truncated index":
        index.write_bytes(index.read_bytes()[:700])
        message = "truncated"
    else:
        whole = index.read_bytes()
        first_block_ends = whole.index(struct_of_restart()) + 8
        index.write_bytes(whole[:first_block_ends] + b"\1" + whole[first_block_ends + 1 :])
        message = r"compressed \(snappy\)"
    with pytest.raises(ValueError, match=message):
        DeepMimicExpert.load(tmp_path / "humanoid3d_walk.ckpt")


def struct_of_restart() -> bytes:
    """The end of the first block of pybullet's indices: three restart points, the last one's place, their number."""
    return bytes.fromhex("0204000003000000")


@pytestmark_bullet
@pytest.mark.parametrize(("skill", "least"), [("backflip", 0.5), ("jump", 0.65), ("spinkick", 0.5), ("walk", 0.65)])
def test_experts_imitate_and_do_not_fall(skill: str, least: float) -> None:
    found = rewards(skill, DeepMimicExpert(skill), 60)
    assert len(found) == 60 and np.mean(found) > least
    other = DeepMimicExpert("walk" if skill != "walk" else "jump")
    assert np.mean(rewards(skill, other, 60)[:45]) < least  # who was trained for something else does not


@pytestmark_bullet
def test_bad_arguments_of_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="pybullet has no policy of 'kick'; it has backflip, jump, spinkick, walk"):
        DeepMimicExpert("kick")
    with pytest.raises(ValueError, match="noise must not be negative, got -1"):
        DeepMimicExpert("walk", noise=-1)
    for actor in (DeepMimicExpert("walk"), AssistedPlayback("walk")):
        with pytest.raises(ValueError, match=r"shape \[197\] or \[B, 197\], got \[196\]"):
            actor.predict(np.zeros(196))
    with pytest.raises(FileNotFoundError, match="none.ckpt.index is missing"):
        DeepMimicExpert.load("none.ckpt")
    with pytest.raises(ValueError, match="lead must be finite"):
        AssistedPlayback("walk", lead=float("inf"))
    with pytest.raises(ValueError, match="the phase, the first number of an observation, must be in 0..1"):
        AssistedPlayback("walk").predict(np.full(197, 1.5))


# ---------------------------------------------------------------------- playback


@pytestmark_bullet
@pytest.mark.parametrize("skill", ["kick", "spin", "roll"])
def test_assisted_playback_follows_the_clip(skill: str) -> None:
    found = rewards(skill, AssistedPlayback(skill), 45, assisted=True)
    assert len(found) == 45 and np.mean(found) > 0.9
    # Aiming at where the clip is, and not ahead, lags behind.
    assert np.mean(rewards(skill, AssistedPlayback(skill, lead=0.0), 45, assisted=True)) < np.mean(found) - 0.05


@pytestmark_bullet
def test_without_assistance_playback_falls() -> None:
    assert len(rewards("spin", AssistedPlayback("spin"), 100)) < 100


@pytestmark_bullet
@pytest.mark.parametrize("skill", ["kick", "spin", "walk", "backflip"])
def test_the_numbers_of_playback_do_not_jump(skill: str) -> None:
    playback, env = AssistedPlayback(skill), DeepMimicEnv(skill)
    seconds = playback.motion.seconds
    phases = np.arange(0, 1 - 0.1 / seconds, 1 / 30 / seconds)  # where a clip begins anew they may
    observations = np.zeros((len(phases), 197), np.float32)
    observations[:, 0] = phases
    actions, _ = playback.predict(observations)
    env.reset()
    for phase, action, observation in zip(phases, actions, observations, strict=True):
        np.testing.assert_array_equal(playback.predict(observation)[0], action)
        targets = env._targets(action)  # is the pose that is meant
        wanted = playback.motion.at(float(np.float32(phase)) * playback.motion.seconds + 0.1).joints
        for target, joint in zip(targets, wanted, strict=True):
            np.testing.assert_allclose(np.abs(np.dot(target, joint)), np.dot(joint, joint), atol=1e-5)
    axes = actions[:, BALL_STARTS[:, None] + [1, 2, 3]]
    assert (axes[1:] * axes[:-1]).sum(-1).min() > -1e-6  # an axis that turned round would give -1


@pytestmark_bullet
def test_composites_are_made_of_clips() -> None:
    for composite, parts in COMPOSITES.items():
        assert composite in EXPERT_SKILLS
        for part in parts:
            HumanoidMotion.load(part)
