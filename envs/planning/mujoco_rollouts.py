"""Trying sequences of controls on a MuJoCo environment, from the state in which it is and without changing it.

`Rollouts` lets MuJoCo simulate all sequences at once, on data of its own; `Steps` steps a private copy of the
environment.

Shapes: K sequences, H steps, A actuators, Q positions, V velocities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from .mujoco_rewards import Plannable, Reward, Trajectories

__all__ = ["Guidance", "Rollouts", "Servos", "Simulation", "Steps", "load_mujoco"]

Guidance = Callable[[Any, Trajectories], np.ndarray]
"""What is added to the rewards `[K, H]` of an environment's trajectories, to plan by."""


def load_mujoco() -> ModuleType:
    """Return MuJoCo with its batched simulation.

    Raises:
        ImportError: saying what to install, where it is not.
    """
    try:
        import mujoco
        import mujoco.rollout
    except ImportError as error:
        raise ImportError("planning on a simulator needs MuJoCo: pip install 'mujoco<4'") from error
    return mujoco


class Simulation(Protocol):
    """Tries sequences, of controls or of what becomes controls, from the state in which an environment is.

    Attributes:
        bounds: least and greatest values `[A]`.
    """

    bounds: tuple[np.ndarray, np.ndarray]

    def returns(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of rewards `[K]` of sequences `[K, H, A]` up to where the episode ends, and whether it does not."""

    def rest(self) -> np.ndarray:
        """`[A]`, what a first plan repeats."""

    def control(self, value: np.ndarray) -> np.ndarray:
        """The control `[A]` that the first value `[A]` of a sequence is now."""


class Rollouts:
    """MuJoCo's own batched simulation, and rewards of whole arrays.

    It works on simulator data of its own, so nothing of the environment is ever changed. External forces and moving
    mocap bodies are not simulated.

    Args:
        env: a MuJoCo environment of Gymnasium, unwrapped, or a `Plannable`; of this one H counts steps, and the
            trajectories that its reward is asked about count frames.
        reward: of its trajectories.
        samples: K.
        horizon: H.
        threads: over which the sequences are spread.
        end_cost: what each step counts that an episode ended too early.
        guidance: what to add to the rewards, if anything.
        servo: if positive, sequences are targets of `Servos` with this error; else they are controls.
        substeps: if positive, simulate each step by that many of Euler's method instead of as the environment does.

    Attributes:
        bounds: least and greatest values `[A]` of a sequence.
    """

    def __init__(
        self,
        env: Any,
        reward: Reward,
        *,
        samples: int,
        horizon: int,
        threads: int = 1,
        end_cost: float = 0.0,
        guidance: Guidance | None = None,
        servo: float = 0.0,
        substeps: int = 0,
    ) -> None:
        mujoco = load_mujoco()
        self._mujoco, self._env, self._reward = mujoco, env, reward
        self._end_cost, self._guidance = end_cost, guidance
        self.bounds = _bounds(env)
        self._model, self._skip = env.model, env.frame_skip
        if substeps or servo:
            self._model = copy.copy(env.model)
        if substeps:
            self._skip = substeps
            self._model.opt.timestep = env.dt / substeps
            self._model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
        self._servos = Servos(mujoco, env, self._model, servo) if servo else None
        if self._servos:
            self.bounds = self._servos.bounds
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(self._model) for _ in range(threads)]
        self._physics = mujoco.mjtState.mjSTATE_FULLPHYSICS
        size = mujoco.mj_stateSize(self._model, self._physics)
        self._start = np.empty(size)
        self._repeat = getattr(env, "action_repeat", 1)
        # Sensors are read before a time step: those after the last one need another.
        steps = horizon * self._repeat * self._skip + bool(self._model.nsensordata)
        self._states = np.empty((samples, steps, size))
        self._sensors = np.empty((samples, steps, self._model.nsensordata))

    def returns(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of rewards `[K]` of sequences `[K, H, A]` up to where the episode ends, and whether it does not."""
        trajectories = self.trajectories(sequences)
        rewards, ended = self._reward(trajectories)
        if self._guidance is not None:
            rewards = rewards + self._guidance(self._env, trajectories)
        ended = np.logical_or.accumulate(ended, 1)
        alive = np.ones_like(ended)
        alive[:, 1:] = ~ended[:, :-1]
        return np.where(alive, rewards, -self._end_cost).sum(1), ~ended[:, -1]

    def rest(self) -> np.ndarray:
        """`[A]`, what a first plan repeats: no force, or the present pose."""
        return self._servos.rest() if self._servos else np.clip(0.0, *self.bounds)

    def control(self, value: np.ndarray) -> np.ndarray:
        """The control `[A]` that the first value `[A]` of a sequence is now."""
        if self._servos is None:
            return value
        return self._servos.controls(value, self._env.data.qpos, self._env.data.qvel)

    def trajectories(self, sequences: np.ndarray) -> Trajectories:
        """Simulate sequences `[K, H, A]`; the arrays are overwritten by the next call."""
        env, model, skip = self._env, self._model, self._skip
        sequences = np.repeat(sequences, self._repeat, axis=1)
        self._mujoco.mj_getState(env.model, env.data, self._start, self._physics)
        inputs = self._servos.inputs(sequences) if self._servos else sequences
        inputs, steps = np.repeat(inputs, skip, axis=1), inputs.shape[1] * skip
        self._pool.rollout(
            model,
            self._data,
            self._start,
            np.concatenate([inputs, inputs[:, -1:]], 1)[:, : self._states.shape[1]],
            initial_warmstart=env.data.qacc_warmstart,
            state=self._states,
            sensordata=self._sensors,
        )
        # A state is: time, positions, velocities, and what no reward needs.
        first = np.broadcast_to(self._start, (len(sequences), 1, len(self._start)))
        states = np.concatenate([first, self._states[:, :steps]], 1)
        positions, velocities = states[..., 1 : 1 + model.nq], states[..., 1 + model.nq : 1 + model.nq + model.nv]
        # The last stage of a Runge-Kutta step places bodies where the step ends (to third order); other integrators
        # leave them where it began.
        prompt = isinstance(env, Plannable) or model.opt.integrator == self._mujoco.mjtIntegrator.mjINT_RK4
        lag = 0 if prompt else 1
        seen = positions[:, skip - lag : positions.shape[1] - lag : skip]
        positions, velocities = positions[:, ::skip], velocities[:, ::skip]
        if self._servos:
            sequences = self._servos.controls(sequences, positions[:, :-1], velocities[:, :-1])
        return Trajectories(positions, velocities, seen, sequences, self._sensors[:, skip::skip])


class Servos:
    """Proportional-derivative control of the joints that a model's motors drive.

    The control is clip((target - q) / error - 0.07 s / error * q'), between the motor's own bounds. Torques given
    beforehand make a simulated robot fall, whatever they are; around a pose that servos hold many do not.

    Args:
        mujoco: the module.
        env: whose motors they replace.
        model: a copy of its model, in which they are put in the motors' places.
        error: at which a resting joint gets the whole torque (rad).

    Attributes:
        bounds: least and greatest targets `[A]` (rad), those of the joints.
    """

    def __init__(self, mujoco: ModuleType, env: Any, model: Any, error: float) -> None:
        self._env = env
        self._joints = model.actuator_trnid[:, 0]
        self._positions, self._velocities = model.jnt_qposadr[self._joints], model.jnt_dofadr[self._joints]
        self._motor = _bounds(env)
        self._stiffness, self._damping = 1 / error, 0.07 / error
        self._gear = model.actuator_gear[:, 0].copy()
        low, high = model.jnt_range[self._joints].T.copy()
        self.bounds = (low, high)
        # In the model that is simulated the motors are such servos; their lengths are joint positions times gear.
        model.actuator_gainprm[:, 0] = self._stiffness / self._gear
        model.actuator_biastype[:] = mujoco.mjtBias.mjBIAS_AFFINE
        model.actuator_biasprm[:, 1] = -self._stiffness / self._gear
        model.actuator_biasprm[:, 2] = -self._damping / self._gear
        model.actuator_forcelimited[:] = 1
        model.actuator_forcerange[:] = np.stack(self._motor, 1)
        model.actuator_ctrllimited[:] = 0

    def rest(self) -> np.ndarray:
        """Where the joints are."""
        return np.clip(self._env.data.qpos[self._positions], *self.bounds)

    def inputs(self, targets: np.ndarray) -> np.ndarray:
        """What the simulated model takes for targets `[..., A]` (rad)."""
        return targets * self._gear

    def controls(self, targets: np.ndarray, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """The motors' controls `[..., A]` at states `[..., Q]` and `[..., V]`."""
        error = targets - positions[..., self._positions]
        wanted = self._stiffness * error - self._damping * velocities[..., self._velocities]
        return np.clip(wanted, *self._motor)


class Steps:
    """The steps of a private copy of the environment, for rewards that are known to the environment only.

    Args:
        env: a MuJoCo environment of Gymnasium, unwrapped.

    Attributes:
        bounds: least and greatest controls `[A]`.
    """

    def __init__(self, env: Any) -> None:
        self._env, self._copy = env, copy.deepcopy(env)
        self.bounds = _bounds(env)

    def returns(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of rewards `[K]` of controls `[K, H, A]` up to where the episode ends, and whether it does not."""
        returns, survives = zip(*(self._return(controls) for controls in sequences), strict=True)
        return np.array(returns), np.array(survives)

    def rest(self) -> np.ndarray:
        """`[A]`: no force."""
        return np.clip(0.0, *self.bounds)

    def control(self, value: np.ndarray) -> np.ndarray:
        """The value itself."""
        return value

    def _return(self, controls: np.ndarray) -> tuple[float, bool]:
        # What the environment has beside its simulator, a goal or a counter, is part of its state too.
        for name, value in vars(self._env).items():
            if value is None or isinstance(value, int | float | str | tuple | np.generic | np.ndarray):
                setattr(self._copy, name, value.copy() if isinstance(value, np.ndarray) else value)
        self._copy.render_mode = None
        self._copy.model, self._copy.data = self._env.model, copy.copy(self._env.data)
        total = 0.0
        for control in controls.astype(self._env.action_space.dtype):
            _, reward, terminated, _, _ = self._copy.step(control)
            total += float(reward)
            if terminated:
                return total, False
        return total, True


def _bounds(env: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = env.model.actuator_ctrlrange.T.copy()
    return low, high
