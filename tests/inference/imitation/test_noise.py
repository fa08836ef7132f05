"""Noise fitted to errors: closed forms against numerical optima, and samples against what was fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import chisquare, multivariate_normal

from pyrocontrol.inference import ConfusionNoise, GaussianNoise


def gaussian_errors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Actions of a teacher and of a learner with correlated errors and a bias, `[60, 2]` each."""
    teacher = rng.normal(size=(60, 2))
    return teacher, teacher + rng.normal(size=(60, 2)) @ np.array([[0.3, 0.1], [0.0, 0.2]]) + (0.3, 0.0)


# Gaussian


def test_gaussian_fit_is_the_second_moment_of_the_errors() -> None:
    teacher, learner = gaussian_errors(np.random.default_rng(0))
    fitted = GaussianNoise(np.zeros((2, 2))).fit(teacher, learner)
    expected = sum(np.outer(b - a, b - a) for a, b in zip(teacher, learner, strict=True)) / 60
    np.testing.assert_allclose(fitted.covariance, expected, rtol=1e-12)
    about_the_mean = np.cov((learner - teacher).T, bias=True)
    assert np.abs(fitted.covariance - about_the_mean).max() > 0.005  # a bias is an error as well


def test_gaussian_fit_is_the_numerical_optimum_of_the_likelihood() -> None:
    teacher, learner = gaussian_errors(np.random.default_rng(1))

    def loss(factor: np.ndarray) -> float:
        lower = np.array([[np.exp(factor[0]), 0.0], [factor[1], np.exp(factor[2])]])
        density = multivariate_normal(np.zeros(2), lower @ lower.T)
        return -float(density.logpdf(learner - teacher).mean())

    found = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x
    lower = np.array([[np.exp(found[0]), 0.0], [found[1], np.exp(found[2])]])
    fitted = GaussianNoise(np.zeros((2, 2))).fit(teacher, learner)
    np.testing.assert_allclose(fitted.covariance, lower @ lower.T, rtol=1e-5)


def test_gaussian_noise_is_scaled_to_the_anticipated_error() -> None:
    teacher, learner = gaussian_errors(np.random.default_rng(2))
    plain = GaussianNoise(np.zeros((2, 2))).fit(teacher, learner)
    scaled = GaussianNoise(np.zeros((2, 2)), alpha=0.5).fit(teacher, learner)
    assert np.trace(scaled.covariance) == pytest.approx(0.5) and scaled.alpha == 0.5
    np.testing.assert_allclose(scaled.covariance * np.trace(plain.covariance), plain.covariance * 0.5, rtol=1e-12)
    perfect = GaussianNoise(np.zeros((2, 2)), alpha=0.5).fit(teacher, teacher)
    assert not perfect.covariance.any()  # there is nothing to scale


@pytest.mark.parametrize(
    "covariance", [[[0.04, 0.03], [0.03, 0.09]], [[1.0, 1.0], [1.0, 1.0]]], ids=["full", "singular"]
)
def test_gaussian_samples_have_mean_and_covariance(covariance: list[list[float]]) -> None:
    noise = GaussianNoise(np.array(covariance))
    actions = np.tile(np.array([1.0, -2.0], np.float32), (20_000, 1))
    drawn = noise.sample(actions, np.random.default_rng(0)) - actions
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(drawn.mean(0)) < 4 * spread / np.sqrt(20_000)).all()
    np.testing.assert_allclose(drawn.T @ drawn / 20_000, covariance, atol=0.04 * spread.max() ** 2)
    assert noise.sample(np.zeros((3, 4, 2)), np.random.default_rng(0)).shape == (3, 4, 2)


def test_no_noise_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(50, 3)).astype(np.float32)
    assert np.array_equal(GaussianNoise(np.zeros((3, 3))).sample(actions, rng), actions)
    numbers = rng.integers(0, 4, 50)
    assert np.array_equal(ConfusionNoise(np.eye(4)).sample(numbers, rng), numbers)


@pytest.mark.parametrize(
    "covariance", [np.zeros(2), np.zeros((2, 3)), [[1.0, 0.5], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[np.nan]]]
)
def test_what_is_no_covariance_is_refused(covariance: Any) -> None:
    with pytest.raises(ValueError, match="a covariance must"):
        GaussianNoise(covariance)


@pytest.mark.parametrize("alpha", [-0.1, np.nan, np.inf])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be in"):
        GaussianNoise(np.eye(1), alpha)
    with pytest.raises(ValueError, match="alpha must be in"):
        ConfusionNoise(np.eye(2), alpha=alpha)


def test_pairs_must_fit_together() -> None:
    with pytest.raises(ValueError, match=r"must both have shape \[N, 2\], got \[5, 2\] and \[4, 2\]"):
        GaussianNoise(np.eye(2)).fit(np.zeros((5, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"must both have shape \[N\], got \[5, 1\] and \[5, 1\]"):
        ConfusionNoise(np.eye(2)).fit(np.zeros((5, 1), int), np.zeros((5, 1), int))
    with pytest.raises(ValueError, match=r"shape \[N, 2\], got \[0, 2\]"):
        GaussianNoise(np.eye(2)).fit(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"integers in 0\.\.1"):
        ConfusionNoise(np.eye(2)).fit(np.array([0, 1]), np.array([0, 2]))


# Confusion

TEACHER = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
LEARNER = np.array([0, 0, 0, 2, 1, 1, 2, 0, 1, 2])
COUNTS = np.array([[3.0, 0, 1, 0], [0, 2, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0]])  # action 3 was never taken


def test_confusion_fit_counts() -> None:
    fitted = ConfusionNoise(np.eye(4), prior=0).fit(TEACHER, LEARNER)
    expected = COUNTS / COUNTS.sum(1, keepdims=True).clip(1)
    expected[3, 3] = 1  # nothing is known of it
    np.testing.assert_allclose(fitted.matrix, expected, atol=1e-15)


def test_confusion_fit_is_the_numerical_optimum_of_the_likelihood() -> None:
    def loss(logits: np.ndarray) -> float:
        rows = logits.reshape(4, 4) - np.logaddexp.reduce(logits.reshape(4, 4), 1, keepdims=True)
        return -float(rows[TEACHER, LEARNER].mean())

    found = np.exp(minimize(loss, np.zeros(16), method="BFGS", options={"gtol": 1e-8}).x.reshape(4, 4))
    found /= found.sum(1, keepdims=True)
    fitted = ConfusionNoise(np.eye(4), prior=0).fit(TEACHER, LEARNER)
    # How near the minimiser comes depends on the machine: to 1.1e-5 on one.
    np.testing.assert_allclose(np.asarray(fitted.matrix)[:3], found[:3], atol=1e-4)


def test_a_prior_leaves_unseen_errors_possible() -> None:
    fitted = ConfusionNoise(np.eye(4), prior=0.4).fit(TEACHER, LEARNER)
    expected = (COUNTS[:3] + 0.1) / (COUNTS[:3].sum(1, keepdims=True) + 0.4)
    np.testing.assert_allclose(np.asarray(fitted.matrix)[:3], expected, rtol=1e-12)
    assert np.asarray(fitted.matrix)[3].tolist() == [0, 0, 0, 1]
    assert ConfusionNoise(np.eye(4), prior=0.4).prior == fitted.prior == fitted.fit(TEACHER, LEARNER).prior


@pytest.mark.parametrize(("alpha", "rate"), [(0.1, 0.1), (0.45, 0.45), (0.9, 0.6)])
def test_confusion_is_scaled_to_the_anticipated_rate_of_errors(alpha: float, rate: float) -> None:
    """The last alpha is out of reach: action 2 is already never itself at twice the errors, a rate of 0.6."""
    fitted = np.asarray(ConfusionNoise(np.eye(4), prior=0, alpha=alpha).fit(TEACHER, LEARNER).matrix)
    np.testing.assert_allclose(fitted.sum(1), 1)
    assert (1 - fitted[TEACHER, TEACHER]).mean() == pytest.approx(rate)
    assert fitted[2, 0] == pytest.approx(fitted[2, 1]) and fitted[0, 1] == 0  # the errors' shares stay


def test_each_component_of_multidiscrete_actions_has_its_own_confusion() -> None:
    teacher = np.stack([TEACHER, TEACHER % 2], 1)
    learner = np.stack([LEARNER, 1 - TEACHER % 2], 1)
    fitted = ConfusionNoise([np.eye(4), np.eye(2)], prior=0).fit(teacher, learner)
    np.testing.assert_allclose(fitted.matrix[0], ConfusionNoise(np.eye(4), prior=0).fit(TEACHER, LEARNER).matrix)
    assert np.asarray(fitted.matrix[1]).tolist() == [[0, 1], [1, 0]]
    drawn = fitted.sample(teacher, np.random.default_rng(0))
    assert drawn.shape == teacher.shape and (drawn[:, 1] == 1 - teacher[:, 1]).all()


def test_confusion_samples_have_the_probabilities_of_their_rows() -> None:
    matrix = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
    noise, rng = ConfusionNoise(matrix), np.random.default_rng(3)
    for action, row in enumerate(matrix):
        counts = np.bincount(noise.sample(np.full(5000, action), rng), minlength=3)
        assert (counts[row == 0] == 0).all()
        if (row > 0).sum() > 1:
            assert chisquare(counts, 5000 * row).pvalue > 0.01
    assert noise.sample(np.array(1), rng).shape == () and noise.sample(np.ones((2, 3), int), rng).shape == (2, 3)


@pytest.mark.parametrize(
    "matrix", [[[0.5, 0.4], [0.0, 1.0]], [[1.5, -0.5], [0.0, 1.0]], np.ones((1, 2)), [], [np.eye(2), np.ones(2)]]
)
def test_what_is_no_confusion_matrix_is_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match="confusion matrix"):
        ConfusionNoise(matrix)
    with pytest.raises(ValueError, match="prior must not be negative"):
        ConfusionNoise(np.eye(2), prior=-1)
