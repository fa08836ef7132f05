"""Teachers of other packages' tasks, by classical control: who shows how it is done where no one did.

Those of our own tasks stand with the tasks (`t_maze.py`, `lane.py`), the planner for MuJoCo's in `planning.py`. All act
through `predict`, as policies do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

from .._saved import Saved

__all__ = ["CartPoleTeacher"]


class CartPoleTeacher(Saved):
    """Balances Gymnasium's CartPole: the linear-quadratic regulator of the dynamics, linearised at the upright pole.

    With s = (x, x', theta, theta') and force F, s_{t+1} = A s_t + B F_t near the upright pole; the regulator
    F = -K s minimises sum_t s_t' Q s_t + R F_t^2. The task knows two forces only, of which the teacher takes the one
    with the sign of F. A and B come from the environment's own constants (masses, length, gravity, time step).

    Args:
        env: a CartPole environment, wrapped or not, whose constants count; None for those of `CartPole-v1`.
        position_weight: what a metre off the centre costs (Q_11), where a radian off the vertical costs 10 (Q_33).

    Attributes:
        gain: K, `[4]` (N/m, N s/m, N/rad, N s/rad).

    Raises:
        TypeError: if `env` is no CartPole.
        ValueError: if the weight is not positive.
    """

    def __init__(self, env: Any = None, *, position_weight: float = 1.0) -> None:
        cart_pole = CartPoleEnv() if env is None else env.unwrapped
        if not isinstance(cart_pole, CartPoleEnv):
            raise TypeError(f"CartPoleTeacher needs a CartPole environment, got {type(cart_pole).__name__}")
        if not position_weight > 0:
            raise ValueError(f"position_weight must be positive, got {position_weight}")
        transition, control = _linearised(cart_pole)
        cost = np.diag([position_weight, 0.1, 10.0, 0.1])
        self.gain = _regulator(transition, control, cost, 1e-3)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Return the action for one observation or a batch, and the state as it was.

        Args:
            observation: `[4]` or `[B, 4]`: position (m), its velocity, angle (rad), its velocity.
            state: not used: all that matters can be observed.
            episode_start: not used.
            deterministic: without effect, the teacher is deterministic.

        Returns:
            The action, `[]` or `[B]` int64 (0 push left, 1 push right), and `state`.

        Raises:
            ValueError: if the observation has another shape.
        """
        seen = np.asarray(observation, np.float64)
        if seen.ndim not in (1, 2) or seen.shape[-1] != 4:
            raise ValueError(f"the observation must have shape [4] or [B, 4], got {list(seen.shape)}")
        return (-(seen @ self.gain) > 0).astype(np.int64)[()], state


def _linearised(env: CartPoleEnv) -> tuple[np.ndarray, np.ndarray]:
    """A `[4, 4]` and B `[4]` of one step near the upright pole, by the environment's own way of integrating.

    The accelerations are those of its source (R. V. Florian, "Correct equations for the dynamics of the cart-pole
    system", without friction) to first order: theta'' = (g theta - F / M) / (l (4/3 - m / M)) and
    x'' = F / M - (m l / M) theta''.
    """
    leverage = 1 / (env.length * (4 / 3 - env.masspole / env.total_mass))
    drives = np.zeros((4, 4))  # x' and theta' move x and theta
    drives[0, 1] = drives[2, 3] = 1.0
    falls, push = np.zeros((4, 4)), np.zeros(4)  # theta and F change x' and theta'
    falls[3, 2] = env.gravity * leverage
    push[3] = -leverage / env.total_mass
    coupling = env.polemass_length / env.total_mass
    falls[1] = -coupling * falls[3]
    push[1] = 1 / env.total_mass - coupling * push[3]
    if env.kinematics_integrator == "euler":
        return np.eye(4) + env.tau * (drives + falls), env.tau * push
    move = np.eye(4) + env.tau * drives  # semi-implicit: velocities first
    return move @ (np.eye(4) + env.tau * falls), move @ (env.tau * push)


def _regulator(transition: np.ndarray, control: np.ndarray, cost: np.ndarray, effort: float) -> np.ndarray:
    """The gain `[4]` of the infinite horizon, by iterating the Riccati equation to its fixed point.

    P = Q + A' P A - A' P B (R + B' P B)^-1 B' P A,  K = (R + B' P B)^-1 B' P A.

    Raises:
        RuntimeError: if the iteration does not settle, as where the force cannot act on the pole.
    """
    value = cost
    for _ in range(10_000):
        gain = (control @ value @ transition) / (effort + control @ value @ control)
        following = cost + transition.T @ value @ (transition - np.outer(control, gain))
        if np.abs(following - value).max() <= 1e-9 * np.abs(following).max():
            return gain
        if np.abs(following).max() > 1e12:
            break
        value = (following + following.T) / 2
    raise RuntimeError("the Riccati equation of this cart and pole has no solution that could be found")
