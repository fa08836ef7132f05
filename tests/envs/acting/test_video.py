"""Videos: what is written can be read back, and is there whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyrocontrol.envs import save_video


def film(count: int = 6, height: int = 20, width: int = 30) -> np.ndarray:
    """A white square that moves to the right over dark blue."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = 90
    for index, frame in enumerate(frames):
        frame[5:12, 3 * index : 3 * index + 7] = 255
    return frames


def test_a_gif_holds_the_frames(tmp_path: Path) -> None:
    frames = film()
    save_video(tmp_path / "new" / "film.gif", frames, fps=30)
    with Image.open(tmp_path / "new" / "film.gif") as gif:
        assert gif.n_frames == 6
        durations = []
        for index, frame in enumerate(frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() <= 8
    assert durations == [30, 40, 30, 30, 40, 30]  # 0.2 s in all
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.gif"]


def test_frames_may_be_a_list_and_alike(tmp_path: Path) -> None:
    still = list(film(1)) * 3
    save_video(tmp_path / "film.GIF", still, fps=10)
    with Image.open(tmp_path / "film.GIF") as gif:
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - still[0]).max() <= 8


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # its reader's
@pytest.mark.parametrize("size", [(32, 48), (21, 31)])
def test_an_mp4_holds_the_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = film(10, *size)
    save_video(str(tmp_path / "film.mp4"), frames, fps=25)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    about = next(reader)
    assert about["fps"] == 25 and about["size"] == (size[1] + size[1] % 2, size[0] + size[0] % 2)
    pictures = [np.frombuffer(data, np.uint8).reshape(*about["size"][::-1], 3) for data in reader]
    assert len(pictures) == 10
    for picture, frame in zip(pictures, frames, strict=True):
        assert np.abs(picture[: size[0], : size[1]].astype(int) - frame).mean() < 12


def test_an_mp4_without_ffmpeg_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModuleNotFoundError, match="pip install imageio-ffmpeg, or write a .gif"):
        save_video(tmp_path / "film.mp4", film())
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.gif"
    save_video(path, film())
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_video(path, film(3))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_two_who_write_the_same_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, save = [], Image.Image.save

    def note(self: Any, path: str, **options: Any) -> None:
        used.append(path)
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", note)
    for _ in range(2):
        save_video(tmp_path / "film.gif", film(2))
    assert len(set(used)) == 2 and [path.name for path in tmp_path.iterdir()] == ["film.gif"]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        pytest.param("film.avi", film(), 30, "must end with .gif or .mp4, got film.avi", id="ending"),
        pytest.param(
            "film.gif", film()[0], 30, r"must be \[N, H, W, 3\] uint8, got \[20, 30, 3\] uint8", id="one-frame"
        ),
        pytest.param("film.gif", film()[:0], 30, r"got \[0, 20, 30, 3\]", id="no-frames"),
        pytest.param("film.gif", film() / 255, 30, "float64", id="floats"),
        pytest.param("film.gif", film(), 0, "fps must be positive, and at most 50 in a GIF, got 0", id="no-rate"),
        pytest.param("film.gif", film(), 100, "at most 50", id="fast-gif"),
        pytest.param("film.mp4", film(), float("nan"), "fps must be positive, got nan", id="nan-rate"),
    ],
)
def test_bad_input_is_refused(name: str, frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_video(name, frames, fps)
