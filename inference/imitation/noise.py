"""Noise on a teacher's actions that looks like a learner's errors.

DART lets the teacher act and disturbs it: where it means a, ã ~ q(ã | a) is executed. The noise is fitted by maximum
likelihood to what the learner would have done where the teacher did a*,

    max_psi  sum_t log q_psi(pi(o_t) | a*_t),

which has a closed form for both families here. After M. Laskey, J. Lee, R. Fox, A. Dragan and K. Goldberg, "DART: Noise
Injection for Robust Imitation Learning" (2017), whose discrete noise has one parameter where ours is a whole matrix.

Actions are in their stored form. Shapes: N steps, A action numbers, K actions, `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["ConfusionNoise", "GaussianNoise", "Noise"]


class Noise(Protocol):
    """A distribution of executed actions given meant ones, q(ã | a)."""

    def fit(self, teacher_actions: np.ndarray, learner_actions: np.ndarray) -> Noise:
        """Return noise of the same kind, fitted to pairs of a teacher's and a learner's action, `[N]` or `[N, A]`."""
        ...

    def sample(self, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what is executed where `actions` are meant, of the same shape."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Gaussian noise on the actions of a Box: ã = a + e, e ~ N(0, Sigma).

    Attributes:
        covariance: Sigma `[A, A]`; zeros for no noise.
        alpha: the error that the learner is expected to have in the end, `E |pi(o) - a*|^2` a step; fitted noise is
            scaled to it. None leaves it as fitted. (The paper's alpha is summed over an episode of T steps: T times
            this one.)

    Raises:
        ValueError: unless the covariance is a symmetric positive semidefinite matrix of finite numbers, and alpha not
            negative.
    """

    covariance: np.ndarray
    alpha: float | None = None
    _factor: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        covariance = np.array(self.covariance, np.float64)
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise ValueError(f"a covariance must have shape [A, A], got {list(covariance.shape)}")
        if not (np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
            raise ValueError("a covariance must be finite and symmetric")
        _check_alpha(self.alpha)
        values, vectors = np.linalg.eigh(covariance)
        if (values < -1e-9 * max(1.0, values.max(initial=0.0))).any():
            raise ValueError(f"a covariance must have no negative eigenvalue, this one has {values.min():g}")
        # Not Cholesky's, which needs a positive definite matrix: no noise is a covariance too.
        object.__setattr__(self, "_factor", vectors * np.sqrt(values.clip(0)))
        object.__setattr__(self, "covariance", covariance)

    def fit(self, teacher_actions: np.ndarray, learner_actions: np.ndarray) -> GaussianNoise:
        """Fit the covariance by maximum likelihood; with `alpha`, scale it to the anticipated error.

            Sigma = 1/N sum_t (pi(o_t) - a*_t) (pi(o_t) - a*_t)^T,    Sigma_alpha = alpha / tr(Sigma) Sigma

        It is the second moment of the errors and not their covariance about a mean: a bias of the learner is an error
        to prepare for, too.

        Args:
            teacher_actions: a* `[N, A]`.
            learner_actions: pi(o) `[N, A]`.

        Raises:
            ValueError: if they are not as many, or not of this width.
        """
        size = len(self.covariance)
        teacher, learner = _pairs(teacher_actions, learner_actions, (size,))
        errors = learner.astype(np.float64) - teacher
        covariance = errors.T @ errors / len(errors)
        if self.alpha is not None and (total := float(np.trace(covariance))) > 0:
            covariance *= self.alpha / total
        return GaussianNoise(covariance, self.alpha)

    def sample(self, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `actions` `[..., A]` with noise, in float64, not clipped to any bounds."""
        actions = np.asarray(actions)
        return actions + rng.standard_normal(actions.shape) @ self._factor.T


@dataclass(frozen=True, eq=False)
class ConfusionNoise:
    """Confusion of numbered actions: ã ~ q(ã | a), a matrix of probabilities.

    Attributes:
        matrix: `[K, K]`, q(ã | a) in row a and column ã; the identity for no noise. For MultiDiscrete actions a
            sequence of A of them, one for each component, which are then confused independently.
        prior: pseudo-counts in each row, spread evenly over its columns, so that an error which was not seen yet stays
            possible: the mean under a Dirichlet prior. The default adds 0.1 of them a row; 0 is maximum likelihood.
        alpha: the rate of errors, E 1[pi(o) != a*] a step and component, that the learner is expected to have in the
            end; fitted noise is scaled to it. None leaves it as fitted.

    Raises:
        ValueError: unless the rows are probabilities, the prior not negative and alpha in 0..1.
    """

    matrix: np.ndarray | Sequence[np.ndarray]
    prior: float = 0.1
    alpha: float | None = None
    _matrices: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given: Any = self.matrix
        single = len(given) > 0 and np.ndim(given[0]) == 1
        matrices = tuple(np.array(matrix, np.float64) for matrix in ([given] if single else given))
        for matrix in matrices:
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"a confusion matrix must have shape [K, K], got {list(matrix.shape)}")
            if not ((matrix >= 0).all() and np.allclose(matrix.sum(1), 1)):
                raise ValueError("every row of a confusion matrix must be probabilities that add up to 1")
        if not matrices:
            raise ValueError("there is no confusion matrix")
        if not 0 <= self.prior < np.inf:
            raise ValueError(f"prior must not be negative, got {self.prior}")
        _check_alpha(self.alpha, 1.0)
        object.__setattr__(self, "_matrices", matrices)
        object.__setattr__(self, "matrix", matrices[0] if single else matrices)

    @property
    def single(self) -> bool:
        """Whether the actions are of a Discrete and so have no components."""
        return isinstance(self.matrix, np.ndarray)

    def fit(self, teacher_actions: np.ndarray, learner_actions: np.ndarray) -> ConfusionNoise:
        """Count how often the learner would have done ã where the teacher did a; with `alpha`, scale the errors.

            q(ã | a) = (n(a, ã) + prior / K) / (n(a) + prior)
            q_alpha = (1 - s) 1 + s q,    s = alpha / (1/N sum_t (1 - q(a*_t | a*_t)))

        An action that the teacher never took is left alone, q(a | a) = 1: nothing is known of errors there. The scale s
        is at most the one at which some q_alpha(a | a) is 0.

        Args:
            teacher_actions: a* `[N]`, or `[N, A]` for MultiDiscrete actions, each from 0.
            learner_actions: pi(o), shaped alike.

        Raises:
            ValueError: if they are not as many or not of this shape, or an action is none of the K.
        """
        trailing = () if self.single else (len(self._matrices),)
        teacher, learner = _pairs(teacher_actions, learner_actions, trailing)
        columns = [(teacher, learner)] if self.single else list(zip(teacher.T, learner.T, strict=True))
        fitted = [
            self._fit_component(len(matrix), *column) for matrix, column in zip(self._matrices, columns, strict=True)
        ]
        return ConfusionNoise(fitted[0] if self.single else fitted, self.prior, self.alpha)

    def _fit_component(self, count: int, teacher: np.ndarray, learner: np.ndarray) -> np.ndarray:
        for actions in (teacher, learner):
            if actions.dtype.kind not in "iu" or actions.min() < 0 or actions.max() >= count:
                raise ValueError(f"actions must be integers in 0..{count - 1}")
        pairs = np.bincount(teacher * count + learner, minlength=count * count).reshape(count, count)
        seen = pairs.sum(1, keepdims=True)
        identity = np.eye(count)
        matrix = np.where(seen > 0, (pairs + self.prior / count) / np.maximum(seen + self.prior, 1e-300), identity)
        wrong = 1 - matrix.diagonal()
        if self.alpha is not None and (rate := float((seen[:, 0] * wrong).sum() / len(teacher))) > 0:
            scale = min(self.alpha / rate, 1 / float(wrong.max()))
            matrix = (1 - scale) * identity + scale * matrix
            matrix = matrix.clip(0)  # a rounding error below
            matrix /= matrix.sum(1, keepdims=True)
        return matrix

    def sample(self, actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what becomes of `actions`, `[...]`, or `[..., A]` for MultiDiscrete actions."""
        actions = np.asarray(actions)
        drawn = np.asarray(rng.random(actions.shape))
        if self.single:
            return _draw(self._matrices[0], actions, drawn)
        components = [_draw(m, actions[..., i], drawn[..., i]) for i, m in enumerate(self._matrices)]
        return np.stack(components, -1)


def _draw(matrix: np.ndarray, actions: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Columns of `matrix` drawn in the rows `actions`, by inversion."""
    cumulative = matrix.cumsum(1)[actions]
    # Divided, so that rounding leaves no gap below 1.
    return (uniform[..., None] >= cumulative / cumulative[..., -1:]).sum(-1)


def _pairs(teacher: Any, learner: Any, trailing: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    teacher, learner = np.asarray(teacher), np.asarray(learner)
    if teacher.shape != learner.shape or teacher.shape[1:] != trailing or teacher.ndim == 0 or len(teacher) == 0:
        wanted = ", ".join(["N", *map(str, trailing)])
        raise ValueError(
            f"the actions of teacher and learner must both have shape [{wanted}], "
            f"got {list(teacher.shape)} and {list(learner.shape)}"
        )
    return teacher, learner


def _check_alpha(alpha: float | None, most: float = np.inf) -> None:
    if alpha is not None and not (0 <= alpha <= most and np.isfinite(alpha)):
        raise ValueError(f"alpha must be in 0..{most:g}, got {alpha}")
