"""Demonstrations of the humanoid: what is recorded, and what is on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrocontrol.envs import DeepMimicEnv, Demonstrations, HumanoidMotion
from pyrocontrol.envs.humanoid import demonstrations as recording
from pyrocontrol.envs.humanoid.demonstrations import (
    Arguments,
    Recording,
    SkillRecord,
    busiest_phase,
    demonstrations,
    main,
    record_demonstrations,
)
from pyrocontrol.envs.humanoid.experts import AssistedPlayback
from pyrocontrol.envs.point_skills import demonstrations as of_points

SMALL: dict[str, Any] = {"per_skill": 2, "steps": 6}


@pytest.fixture
def bullet() -> Any:
    return pytest.importorskip("pybullet")


pytestmark_bullet = pytest.mark.usefixtures("bullet")


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocontrol.envs.humanoid.motion.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pybullet is missing: pip install pybullet"):
        demonstrations()


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
    real, calls = recording._window, []

    def window(*arguments: Any) -> Any:
        calls.append(arguments)
        return (None, float("nan")) if len(calls) in (1, 3, 4) else real(*arguments)

    monkeypatch.setattr(recording, "_window", window)
    found = record_demonstrations(("walk",), **SMALL)
    assert found.skills[0].rejected == 3 and len(found.demonstrations) == 2 and len(calls) == 5
    monkeypatch.setattr(recording, "_window", lambda *_: (None, float("nan")))
    with pytest.raises(
        RuntimeError, match="walk fell 30 times, 0 of 2 demonstrations are done: with less noise than 0.02"
    ):
        record_demonstrations(("walk",), **SMALL)


@pytestmark_bullet
def test_a_demonstration_that_falls_is_none() -> None:
    env = DeepMimicEnv("walk")
    rng = np.random.default_rng(0)
    episode, _ = recording._window(env, AssistedPlayback("walk"), 0.0, 200, 0.1, rng)
    assert episode is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"skills": ()}, r"skills must be several names, at least one, got \(\)"),
    ({"skills": "walk"}, "skills must be several names"),
    ({"skills": ("walk", "walk")}, "skills must be given each once, got walk, walk"),
    ({"skills": ("walk",), "names": ("walk", "walk")}, "names must be given each once"),
    ({"skills": ("walk+",)}, r"a name, and one on either side of a plus: got 'walk\+'"),
    ({"skills": ("walk",), "names": ("kick", "jump")}, "the skill 'walk' is not among the names kick, jump"),
    ({"per_skill": 0}, "per_skill and steps must be at least 1, got 0 and 45"),
    ({"steps": 0}, "got 20 and 0"),
    ({"noise": -0.1}, "noise must be in 0 <= noise < 0.25, got -0.1"),
    ({"noise": float("nan")}, "noise must be"),
    ({"seed": -1}, "seed must be at least 0, not -1"),
]


def test_bad_arguments_are_refused() -> None:
    for arguments, message in BAD:
        with pytest.raises(ValueError, match=message):
            record_demonstrations(**arguments)
            pytest.fail(f"not refused: {message}")


@pytestmark_bullet
def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(ValueError, match="no motion 'flip': .* pybullet ships backflip"):
        demonstrations(("walk", "flip"))


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
    main(Arguments(tmp_path / "skills.npz", ("spin", "walk"), ("spin", "kick", "walk"), per_skill=1, steps=3))
    told = capfd.readouterr()
    assert "demonstration 1/2  spin\ndemonstration 2/2  walk\n" in told.err
    printed = " ".join(told.out.split())
    assert "│ spin │ yes │" in printed and "│ walk │ no │" in printed and "the root was held" in printed
    found = Recording.load(tmp_path / "skills.npz")
    assert found.demonstrations.task.tolist() == [[1, 0, 0], [0, 0, 1]] and found.names == ("spin", "kick", "walk")


def small() -> Recording:
    """A recording that needs no simulator."""
    record = SkillRecord("rise", False, 2, 5, 0.0, 1.0, 0.1, 0, 0.5)
    return Recording(of_points(["rise"], 2, steps=5), ("rise",), (record,), {"seed": 0})


@pytest.mark.parametrize("failing", ["skills.json", "skills.npz"])
def test_what_fails_leaves_neither_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    replace = recording.os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).name == failing:
            raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        small().save(tmp_path / "skills.npz")
    monkeypatch.setattr("os.replace", replace)
    if failing == "skills.json":  # the first
        assert not list(tmp_path.iterdir())
        small().save(tmp_path / "skills.npz")
    assert Recording.load(tmp_path / "skills.npz").skills == small().skills and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("skills.json", "choose another ending"),
        ("folder", "folder is a folder: choose another name"),
        ("records.npz", "records.json is a folder: choose another name"),
    ],
)
def test_files_that_cannot_be_are_refused_before_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "records.json").mkdir()
    monkeypatch.setattr(recording, "record_demonstrations", lambda **_: pytest.fail("it was recorded"))
    with pytest.raises(ValueError, match=message):
        main(Arguments(tmp_path / out))
    with pytest.raises(ValueError, match=message):
        small().save(tmp_path / out)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "records.json"}
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file"):
        main(Arguments(tmp_path / "file" / "skills.npz"))
