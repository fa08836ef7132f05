"""The humanoid's experts and assisted playback, and the demonstrations that they record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrocontrol.envs import DeepMimicEnv, Demonstrations, HumanoidMotion
from pyrocontrol.envs import deep_mimic_experts as experts
from pyrocontrol.envs.deep_mimic import ACTION_HIGH, ACTION_LOW
from pyrocontrol.envs.deep_mimic_experts import (
    COMPOSITES,
    EXPERT_SKILLS,
    Arguments,
    AssistedPlayback,
    DeepMimicExpert,
    Recording,
    busiest_phase,
    demonstrations,
    main,
    record_demonstrations,
)
from pyrocontrol.envs.humanoid_motion import bullet_data

SMALL: dict[str, Any] = {"per_skill": 2, "steps": 6}


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.humanoid_motion.importlib.util.find_spec", lambda name: None)
    for call in (lambda: DeepMimicExpert("walk"), lambda: AssistedPlayback("kick"), demonstrations):
        with pytest.raises(ModuleNotFoundError, match=r"pybullet is missing: pip install 'pyrocontrol\[bullet\]'"):
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
    axes = actions[:, experts._BALLS[:, None] + [1, 2, 3]]
    assert (axes[1:] * axes[:-1]).sum(-1).min() > -1e-6  # an axis that turned round would give -1


# ---------------------------------------------------------------------- demonstrations


@pytestmark_bullet
def test_demonstrations_are_windows_of_their_skills() -> None:
    found = record_demonstrations(("kick", "walk"), **SMALL)
    demos = found.demonstrations
    assert isinstance(demos, Demonstrations) and len(demos) == 4
    assert demos.observations.shape == (4, 7, 197) and demos.actions.shape == (4, 7, 36)
    assert demos.observations.dtype == torch.float32 and demos.rewards is not None
    assert demos.task.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]] and demos.truncated.all()
    assert found.names == ("kick", "walk") and [record.assisted for record in found.skills] == [True, False]
    assert demos.observations[:, 0, 0].tolist() == [0] * 4
    assert not torch.equal(demos.observations[0], demos.observations[1])
    assert found.skills[0].mean_reward == pytest.approx(demos.rewards[:2, :-1].mean().item(), rel=1e-5)


@pytestmark_bullet
def test_recorded_actions_are_those_that_were_executed() -> None:
    demos = demonstrations(("walk",), **SMALL, noise=0.03)
    env = DeepMimicEnv("walk")
    observation, _ = env.reset()
    for step in range(6):
        np.testing.assert_array_equal(observation, demos.observations[1, step].numpy())
        observation, reward, *_ = env.step(demos.actions[1, step].numpy())
        assert np.float32(reward) == demos.rewards[1, step]  # type: ignore[index]
    np.testing.assert_array_equal(observation, demos.observations[1, 6].numpy())


@pytestmark_bullet
def test_demonstrations_depend_on_seed_skill_and_place_only() -> None:
    both = demonstrations(("kick", "walk"), **SMALL)
    alone = demonstrations(("walk",), per_skill=3, steps=6, names=("jump", "kick", "walk"))
    torch.testing.assert_close(alone.observations[:2], both.observations[2:], rtol=0, atol=0)
    torch.testing.assert_close(alone.actions[:2], both.actions[2:], rtol=0, atol=0)
    assert alone.task.tolist() == [[0, 0, 1]] * 3
    other = demonstrations(("walk",), **SMALL, seed=1)
    assert not torch.equal(other.actions, both.actions[2:])
    assert demonstrations(("kick", "walk"), **SMALL).fingerprint() == both.fingerprint()


@pytestmark_bullet
def test_falls_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = experts._window, []

    def window(*arguments: Any) -> Any:
        calls.append(arguments)
        return (None, float("nan")) if len(calls) in (1, 3, 4) else real(*arguments)

    monkeypatch.setattr(experts, "_window", window)
    found = record_demonstrations(("walk",), **SMALL)
    assert found.skills[0].rejected == 3 and len(found.demonstrations) == 2 and len(calls) == 5
    monkeypatch.setattr(experts, "_window", lambda *_: (None, float("nan")))
    with pytest.raises(
        RuntimeError, match="walk fell 30 times, 0 of 2 demonstrations are done: with less noise than 0.02"
    ):
        record_demonstrations(("walk",), **SMALL)


@pytestmark_bullet
def test_a_demonstration_that_falls_is_none() -> None:
    env = DeepMimicEnv("walk")
    rng = np.random.default_rng(0)
    episode, _ = experts._window(env, AssistedPlayback("walk"), 0.0, 200, 0.1, rng)
    assert episode is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skills": ()}, "must each be there and once"),
        ({"skills": ("walk", "walk")}, "must each be there and once"),
        ({"skills": ("walk",), "names": ("kick", "jump")}, "the names kick, jump lack walk"),
        ({"per_skill": 0}, "per_skill and steps must be at least 1, got 0 and 45"),
        ({"steps": 0}, "got 20 and 0"),
        ({"noise": -0.1}, "noise must be in 0 <= noise < 0.25, got -0.1"),
        ({"noise": float("nan")}, "noise must be"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_demonstrations(**arguments)


@pytestmark_bullet
def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(ValueError, match="no motion 'flip': .* pybullet ships backflip"):
        demonstrations(("walk", "flip"))


@pytestmark_bullet
def test_composites_are_made_of_clips() -> None:
    for composite, parts in COMPOSITES.items():
        assert composite in EXPERT_SKILLS
        for part in parts:
            HumanoidMotion.load(part)


def test_a_window_begins_where_a_long_clip_turns_most() -> None:
    def clip(seconds: float, first: float, last: float) -> HumanoidMotion:
        """Stands, turns once between two times, stands."""
        times = np.arange(0, seconds + 1e-9, 0.05)
        frames = np.zeros((len(times), 44))
        frames[:, 0] = 0.05
        frames[:, [4, 8, 12, 16, 21, 25, 30, 35, 39]] = 1
        angle = 2 * np.pi * ((times - first) / (last - first)).clip(0, 1)
        frames[:, 4], frames[:, 6] = np.cos(angle / 2), np.sin(angle / 2)
        return HumanoidMotion(frames)

    assert busiest_phase(clip(1.9, 1.0, 1.5), 15) == 0  # not long
    assert busiest_phase(clip(4.0, 2.0, 3.0), 30) == pytest.approx(0.5)
    assert busiest_phase(clip(4.0, 2.0, 3.0), 45) == pytest.approx(1.5 / 4)  # the first that holds all of it
    assert busiest_phase(clip(4.0, 2.0, 3.0), 200) == 0  # longer than the clip


# ---------------------------------------------------------------------- on disk


@pytestmark_bullet
def test_what_is_assisted_is_known_on_disk(tmp_path: Path) -> None:
    found = record_demonstrations(("kick", "walk"), **SMALL)
    assert found.save(tmp_path / "new" / "skills.npz") == tmp_path / "new" / "skills.json"
    text = json.loads((tmp_path / "new" / "skills.json").read_text())
    assert [(skill["skill"], skill["assisted"]) for skill in text["skills"]] == [("kick", True), ("walk", False)]
    again = Recording.load(tmp_path / "new" / "skills.npz")
    assert again.skills == found.skills and again.names == found.names and again.settings == found.settings
    assert again.demonstrations.fingerprint() == found.demonstrations.fingerprint()
    assert len(list((tmp_path / "new").iterdir())) == 2

    record_demonstrations(("kick", "walk"), **SMALL, seed=1).demonstrations.save(tmp_path / "new" / "skills.npz")
    with pytest.raises(ValueError, match="skills.json does not belong to .*skills.npz"):
        Recording.load(tmp_path / "new" / "skills.npz")
    (tmp_path / "new" / "skills.json").write_text("{}")
    with pytest.raises(ValueError, match="skills.json holds no records"):
        Recording.load(tmp_path / "new" / "skills.npz")
    (tmp_path / "new" / "skills.json").unlink()
    with pytest.raises(FileNotFoundError, match="skills.json is missing"):
        Recording.load(tmp_path / "new" / "skills.npz")
    with pytest.raises(ValueError, match="choose another ending"):
        found.save(tmp_path / "skills.json")


@pytestmark_bullet
def test_the_command_records_and_says_what(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(Arguments(tmp_path / "skills.npz", ("spin", "walk"), per_skill=1, steps=3))
    printed = " ".join(capfd.readouterr().out.split())
    assert "│ spin │ yes │" in printed and "│ walk │ no │" in printed and "the root was held" in printed
    assert len(Recording.load(tmp_path / "skills.npz").demonstrations) == 2
