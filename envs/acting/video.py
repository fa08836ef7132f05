"""Videos of what an environment renders."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..._files import replacing

__all__ = ["save_video"]


def save_video(path: str | os.PathLike[str], frames: np.ndarray | Sequence[np.ndarray], fps: float = 30.0) -> None:
    """Write pictures as a film, to a GIF or an MP4. The file appears whole or not at all.

    A GIF is shown in steps of 10 ms: at 30 pictures a second some stay for 30 and some for 40 ms.

    Args:
        path: ends with `.gif`, or with `.mp4`, which needs the package imageio-ffmpeg. Its folder is made if missing.
        frames: `[N, H, W, 3]` uint8.
        fps: pictures a second.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the ending is another one, the frames have another shape or type, there are none, or the rate is
            not positive (above 50 in a GIF).
        ModuleNotFoundError: for an MP4 without imageio-ffmpeg.
    """
    path = Path(path)
    verify_video(path, fps)
    pictures = np.asarray(frames)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8 or 0 in pictures.shape:
        raise ValueError(f"frames must be [N, H, W, 3] uint8, got {list(pictures.shape)} {pictures.dtype}")
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    with replacing(path) as (temporary,):
        write(str(temporary), pictures, fps)


def verify_video(path: Path, fps: float) -> None:
    """Make sure, before there are pictures, that a video of this name and rate can be written.

    Raises:
        ValueError: for another ending, or a rate that is not positive (above 50 in a GIF).
        ModuleNotFoundError: for an MP4 without imageio-ffmpeg.
    """
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"a video must end with .gif or .mp4, got {path}")
    gif = path.suffix.lower() == ".gif"
    if not (0 < fps < np.inf) or (gif and fps > 50):
        raise ValueError(f"fps must be positive{', and at most 50 in a GIF' * gif}, got {fps}")
    if not gif and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ModuleNotFoundError("an MP4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or write a .gif")


def _write_gif(path: str, frames: np.ndarray, fps: float) -> None:
    from PIL import Image  # here, because few need it; it comes with matplotlib

    # What has been shown by the end of each picture, in whole steps of 10 ms.
    ends = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    # One palette for all pictures, so that nothing flickers: that of a sample of them.
    sample = np.concatenate(list(frames[:: max(1, len(frames) // 8)]))
    palette = Image.fromarray(sample).quantize(256)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [int(10 * duration) for duration in np.diff(ends)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)


def _write_mp4(path: str, frames: np.ndarray, fps: float) -> None:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    # H.264 wants even sizes; the last row or column is repeated.
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = (even.shape[2], even.shape[1])
    writer = imageio_ffmpeg.write_frames(path, size, fps=fps, macro_block_size=1, quality=8, ffmpeg_log_level="error")
    try:
        writer.send(None)
        for frame in even:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
