"""Demonstrations by experts: made once, kept one by one, failures left out, pixels of the same episodes."""

from pathlib import Path

import numpy as np
import pytest

from painter import Painter
from pyrocontrol.envs import SawyerPeg
from pyrocontrol.envs.dm_control import TASKS
from pyrocontrol.envs.experts import EXPERTS, demonstrations

pytest.importorskip("dm_control")


def test_they_are_made_once_and_pixels_show_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mujoco.Renderer", Painter)
    monkeypatch.setitem(TASKS["reacher-easy"].planning, "samples", 4)
    first = demonstrations("reacher-easy", 1, folder=tmp_path, progress=False)
    assert first.returns is not None and first.truncated.all() and first.actions.shape == (1, 501, 2)
    file = tmp_path / "vectors-000.npz"
    written = file.stat().st_mtime_ns
    both = demonstrations("reacher-easy", 2, folder=tmp_path, progress=False)
    assert file.stat().st_mtime_ns == written and both[0].fingerprint() == first.fingerprint()
    pixels = demonstrations("reacher-easy", 2, folder=tmp_path, observations="pixels", progress=False)
    assert pixels.observation_space.shape == (64, 64, 3) and np.array_equal(pixels.actions, both.actions)
    assert np.array_equal(pixels.rewards, both.rewards)
    assert len({*pixels.observations[0].float().mean(1).tolist()}) > 100  # it is not the same picture all the time
    with pytest.raises(ValueError, match="another run"):
        demonstrations("reacher-easy", 1, folder=tmp_path, seed=1, progress=False)


def test_failures_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metaworld")
    found = demonstrations("sawyer-peg", 5, folder=tmp_path, progress=False)  # the expert fails with seed 4
    names = [file.name for file in sorted(tmp_path.glob("*.npz"))]
    assert names == [f"vectors-{seed:03}.npz" for seed in (0, 1, 2, 3, 5)] and len(found) == 5
    env = SawyerPeg()
    env.reset(seed=5)
    for action in found[4].actions[0, :-1].numpy():
        _, _, _, truncated, info = env.step(action)
    assert truncated and info["is_success"] and env.succeeded
    monkeypatch.setitem(EXPERTS, "sawyer-peg", EXPERTS["sawyer-peg"]._replace(policy=lambda *_: lambda _: np.zeros(4)))
    with pytest.raises(RuntimeError, match="failed 20 times in a row"):
        demonstrations("sawyer-peg", 6, folder=tmp_path, progress=False)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for arguments, message in (
        ({"task": "walker-fly"}, "task must be one of 'cheetah-run'"),
        ({"task": "sawyer-peg", "observations": "pixels"}, "sawyer-peg has no 'pixels', only 'vectors'"),
        ({"task": "walker-walk", "count": 0}, "count"),
    ):
        with pytest.raises(ValueError, match=message):
            demonstrations(folder=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
