"""Rotations as unit quaternions (x, y, z, w), the order of Bullet; batched, numpy."""

from __future__ import annotations

import numpy as np

__all__ = ["from_axis_angle", "inverse", "product", "rotation_vector", "slerp"]


def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rotation `second`, then `first`: `[..., 4]` of two that broadcast."""
    x1, y1, z1, w1 = np.moveaxis(first, -1, 0)
    x2, y2, z2, w2 = np.moveaxis(second, -1, 0)
    return np.stack(
        [
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 + y1 * w2 + z1 * x2 - x1 * z2,
            w1 * z2 + z1 * w2 + x1 * y2 - y1 * x2,
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        ],
        -1,
    )


def inverse(rotation: np.ndarray) -> np.ndarray:
    """The rotation back, `[..., 4]`."""
    return rotation * np.array([-1.0, -1.0, -1.0, 1.0])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (rad), `[..., 3]`, of the shorter way: the angle is at most pi.

    By the arc tangent, which keeps its precision at small angles, where the arc cosine of w loses half the digits.
    """
    vector, w = rotation[..., :3], rotation[..., 3:]
    vector, w = np.where(w < 0, -vector, vector), np.abs(w)
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    small = sine < 1e-12
    return vector * np.where(small, 2.0, 2 * np.arctan2(sine, w) / np.where(small, 1.0, sine))


def from_axis_angle(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """`[..., 4]` of axes `[..., 3]` of any length and angles `[...]` (rad); an axis of length 0 is no rotation."""
    length = np.linalg.norm(axis, axis=-1, keepdims=True)
    half = angle[..., None] / 2
    none = length < 1e-12
    unit = axis / np.where(none, 1.0, length)
    turned = np.concatenate([unit * np.sin(half), np.cos(half)], -1)
    return np.where(none, np.array([0.0, 0.0, 0.0, 1.0]), turned)


def slerp(first: np.ndarray, second: np.ndarray, fraction: float) -> np.ndarray:
    """The rotation a `fraction` of the shorter way from `first` to `second`, `[..., 4]`."""
    cosine = (first * second).sum(-1, keepdims=True)
    second, cosine = np.where(cosine < 0, -second, second), np.abs(cosine).clip(max=1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    near = sine < 1e-8  # a straight line then, to the last digit
    divisor = np.where(near, 1.0, sine)
    before = np.where(near, 1 - fraction, np.sin((1 - fraction) * angle) / divisor)
    after = np.where(near, fraction, np.sin(fraction * angle) / divisor)
    mixed = before * first + after * second
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
