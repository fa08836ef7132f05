"""Rotations as quaternions: against rotation matrices, and at the angles where formulas break down."""

import itertools

import numpy as np

from pyrocontrol.envs.humanoid.quaternions import from_axis_angle, inverse, product, rotation_vector, slerp

Z = np.array([0.0, 0.0, 1.0])


def matrix(rotation: np.ndarray) -> np.ndarray:
    x, y, z, w = rotation
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def some(count: int) -> np.ndarray:
    numbers = np.random.default_rng(0).normal(size=(count, 4))
    return numbers / np.linalg.norm(numbers, axis=-1, keepdims=True)


def test_a_product_is_that_of_the_matrices() -> None:
    first, second = some(2)
    np.testing.assert_allclose(matrix(product(first, second)), matrix(first) @ matrix(second), atol=1e-15)
    assert not np.allclose(matrix(product(first, second)), matrix(second) @ matrix(first))


def test_products_broadcast_and_inverses_undo() -> None:
    rotations = some(6).reshape(2, 3, 4)
    undone = product(rotations, inverse(rotations))
    np.testing.assert_allclose(undone, np.broadcast_to([0, 0, 0, 1], (2, 3, 4)), atol=1e-15)
    assert product(rotations[0, 0], rotations).shape == (2, 3, 4)


def test_a_rotation_vector_is_axis_times_angle() -> None:
    for angle in (0.0, 1e-13, 1e-9, 1e-4, 1.0, 3.0, np.pi):
        vector = rotation_vector(from_axis_angle(Z * 7, np.array(angle)))
        np.testing.assert_allclose(vector, angle * Z, rtol=1e-12, atol=1e-25)


def test_a_rotation_vector_goes_the_shorter_way() -> None:
    np.testing.assert_allclose(rotation_vector(from_axis_angle(Z, np.array(4.0))), (4.0 - 2 * np.pi) * Z)
    rotation = some(1)[0]
    np.testing.assert_allclose(rotation_vector(-rotation), rotation_vector(rotation), atol=1e-15)


def test_an_axis_of_length_0_is_no_rotation() -> None:
    turned = from_axis_angle(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(turned, [[0, 0, 0, 1], [0, 0, np.sin(0.5), np.cos(0.5)]])


def test_interpolation_turns_evenly_by_the_shorter_way() -> None:
    start = from_axis_angle(Z, np.array(0.5))
    for fraction, angle, sign in itertools.product((0.0, 0.25, 1.0), (0.0, 1e-9, 1.0, 3.0), (1, -1)):
        turned = product(slerp(start, sign * from_axis_angle(Z, np.array(0.5 + angle)), fraction), inverse(start))
        np.testing.assert_allclose(rotation_vector(turned), fraction * angle * Z, atol=1e-12, err_msg=f"{angle} {sign}")
