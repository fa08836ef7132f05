"""A teacher that plans: model predictive path integral control on the simulator itself, without training.

At every step the planner draws sequences of controls around its plan, lets MuJoCo simulate all of them from the
environment's present state, and replaces the plan by their mean with weights exp(return / lambda):

    u_t <- sum_k w_k u^k_t,  w_k proportional to exp(R(u^k) / lambda),  u^k = clip(u + e^k),  e^k ~ N(0, Sigma).

This is the control-as-inference posterior p(u | optimality), estimated by importance sampling from the surroundings of
the plan (G. Williams et al., "Information Theoretic MPC for Model-Based Reinforcement Learning", 2017; without that
paper's extra control cost, since the tasks have their own). The first control of the plan is the action; the rest,
moved by a step, is where the next step's plan starts from.

Shapes: K samples, H steps of the horizon, A actuators.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from .mujoco_rewards import Reward, Trajectories, reward_of

__all__ = ["MPPITeacher"]


class _Settings(NamedTuple):
    """What suits a task: the defaults of `MPPITeacher`'s arguments of these names."""

    horizon: int = 25
    samples: int = 64
    temperature: float = 0.1
    noise: tuple[float, float] = (0.05, 0.5)
    correlation: float = 0.8
    iterations: int = 1


_SUITED = {
    "ReacherEnv": _Settings(15, 20, 0.05, (0.05, 0.05), 0.9, 2),
}


class MPPITeacher:
    """Plans each action on the MuJoCo simulator of a Gymnasium environment, which it leaves as it is.

    The tasks of `mujoco_rewards` are simulated in MuJoCo's own threads of C; any other environment that derives from
    Gymnasium's `MujocoEnv` is stepped in a private copy, which is slower.

    The teacher reads the environment's present state, not the observation: it can only be asked about the state in
    which the environment is. Rewards are those of the environment without its wrappers; time limits are not looked at.
    What it remembers, the plan, is the `state` that `predict` returns; the random numbers of a step depend on `seed`
    and on how many steps that plan is old, so the same questions get the same answers.

    Args:
        env: the environment that will be asked about, wrapped or not.
        horizon: H, steps that are looked ahead.
        samples: K, sequences drawn in each iteration; the first of them is the plan itself.
        temperature: lambda, in standard deviations of the K returns.
        noise: standard deviation of the noise on controls, relative to half their range. With a pair (from, to) the
            samples have different ones, spaced geometrically.
        correlation: of the noise on successive controls (that of an autoregressive process of first order).
        iterations: how often the plan is improved at each step.
        reward: rewards and ends of simulated trajectories, see `mujoco_rewards`; None for the environment's own.
        seed: of the noise.
        threads: over which the K simulations are spread.

    What is None has a default that suits the task.

    Raises:
        ImportError: without MuJoCo, saying what to install.
        TypeError: if `env` is no MuJoCo environment of Gymnasium.
        ValueError: if a number makes no sense.
    """

    def __init__(
        self,
        env: Any,
        *,
        horizon: int | None = None,
        samples: int | None = None,
        temperature: float | None = None,
        noise: float | tuple[float, float] | None = None,
        correlation: float | None = None,
        iterations: int | None = None,
        reward: Reward | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        mujoco = _mujoco()
        from gymnasium.envs.mujoco import MujocoEnv

        simulator: Any = env.unwrapped
        if not isinstance(simulator, MujocoEnv):
            raise TypeError(f"MPPITeacher needs a MuJoCo environment of Gymnasium, got {type(simulator).__name__}")
        given = {
            "horizon": horizon,
            "samples": samples,
            "temperature": temperature,
            "noise": (noise, noise) if isinstance(noise, int | float) else noise,
            "correlation": correlation,
            "iterations": iterations,
        }
        reward = reward or reward_of(simulator)
        suited = _SUITED.get(type(simulator).__name__, _Settings()) if reward else _Settings()
        settings = suited._replace(**{name: value for name, value in given.items() if value is not None})
        _check(settings, threads)
        self.settings, self.seed = settings, seed
        self._env = simulator
        self._observed = simulator if _shows_observations(env) else None
        self._low, self._high = simulator.model.actuator_ctrlrange.T.copy()
        # Standard deviations [K, 1, A]; the first sample is the plan itself.
        spread = np.geomspace(*settings.noise, settings.samples)
        spread[0] = 0.0
        self._deviation = spread[:, None, None] * (self._high - self._low) / 2
        steps = np.arange(settings.horizon)
        covariance = settings.correlation ** np.abs(steps[:, None] - steps)
        self._colour = np.linalg.cholesky(covariance)  # [H, H]: white noise times this has that covariance
        self._simulation: _Simulation = (
            _Rollouts(mujoco, simulator, reward, settings, threads) if reward else _Steps(simulator)
        )

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Return the action for the state in which the environment is, and the plan.

        Args:
            observation: what the environment showed last; only compared with what it shows now, where it is an array
                and no wrapper changes observations.
            state: what the last call returned, the plan `[H, A]` and its age; None at first.
            episode_start: whether to forget the plan.
            deterministic: without effect: what is random is the search.

        Returns:
            The action, `[A]` with the dtype of the action space, and the next state.

        Raises:
            ValueError: if the observation is not one of the state in which the environment is.
        """
        self._check_observation(observation)
        forget = state is None or (episode_start is not None and bool(np.any(episode_start)))
        plan, age = (self._rest(), 0) if forget else (np.asarray(state[0]), int(state[1]))
        generator = np.random.default_rng((self.seed, age))
        for _ in range(self.settings.iterations):
            plan = self._improve(plan, generator)
        action = plan[0].astype(self._env.action_space.dtype)
        return action, (np.concatenate([plan[1:], plan[-1:]]), np.array(age + 1))

    def _rest(self) -> np.ndarray:
        return np.tile(np.clip(0.0, self._low, self._high), (self.settings.horizon, 1))

    def _improve(self, plan: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The mean `[H, A]` of the sequences around a plan, weighted by their returns."""
        white = generator.standard_normal((self.settings.samples, *plan.shape))
        sequences = np.clip(plan + self._deviation * (self._colour @ white), self._low, self._high)
        returns = self._simulation.returns(sequences)
        sound = np.isfinite(returns)  # where the simulation did not blow up
        if not sound.any():
            return plan
        sequences, returns = sequences[sound], returns[sound]
        weights = np.exp((returns - returns.max()) / (self.settings.temperature * returns.std() + 1e-12))
        return np.tensordot(weights / weights.sum(), sequences, 1)

    def _check_observation(self, observation: Any) -> None:
        if self._observed is None or not isinstance(observation, np.ndarray):
            return
        shown = self._observed._get_obs()
        if observation.shape != shown.shape or not np.allclose(observation, shown, rtol=1e-4, atol=1e-5):
            raise ValueError(
                "the observation is not that of the state in which the environment is; "
                "MPPITeacher can only be asked about the environment it was made for, where that is now"
            )


def _mujoco() -> ModuleType:
    try:
        import mujoco
        import mujoco.rollout
    except ImportError as error:
        raise ImportError("MPPITeacher needs MuJoCo: pip install 'pyrocontrol[mujoco]'") from error
    return mujoco


def _check(settings: _Settings, threads: int) -> None:
    whole = {name: getattr(settings, name) for name in ("horizon", "samples", "iterations")} | {"threads": threads}
    for name, value in whole.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not settings.temperature > 0:
        raise ValueError(f"temperature must be positive, got {settings.temperature}")
    if len(settings.noise) != 2 or not all(value > 0 for value in settings.noise):
        raise ValueError(f"noise must be positive, one number or two, got {settings.noise}")
    if not 0 <= settings.correlation < 1:
        raise ValueError(f"correlation must be at least 0 and below 1, got {settings.correlation}")


def _shows_observations(env: Any) -> bool:
    """Whether what the environment shows is what its simulator's environment shows."""
    transparent = {"PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "RecordEpisodeStatistics", "RecordVideo"}
    while env is not env.unwrapped:
        if type(env).__name__ not in transparent:
            return False
        env = env.env
    return hasattr(env, "_get_obs")


# ---------------------------------------------------------------------- simulating


class _Simulation(Protocol):
    """Tries sequences of controls from the state in which an environment is."""

    def returns(self, sequences: np.ndarray) -> np.ndarray:
        """Sums of rewards `[K]` of controls `[K, H, A]`, up to where the episode ends."""


class _Rollouts:
    """MuJoCo's own batched simulation, and rewards of whole arrays.

    It works on simulator data of its own, so nothing of the environment is ever changed.
    """

    def __init__(self, mujoco: ModuleType, env: Any, reward: Reward, settings: _Settings, threads: int) -> None:
        self._mujoco, self._env, self._reward = mujoco, env, reward
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(env.model) for _ in range(threads)]
        self._physics = mujoco.mjtState.mjSTATE_FULLPHYSICS
        size = mujoco.mj_stateSize(env.model, self._physics)
        self._start = np.empty(size)
        self._states = np.empty((settings.samples, settings.horizon * env.frame_skip, size))

    def returns(self, sequences: np.ndarray) -> np.ndarray:
        rewards, ended = self._reward(self.trajectories(sequences))
        alive = np.ones_like(ended)
        alive[:, 1:] = np.logical_and.accumulate(~ended[:, :-1], 1)
        return (rewards * alive).sum(1)

    def trajectories(self, sequences: np.ndarray) -> Trajectories:
        """Simulate controls `[K, H, A]`; the arrays are overwritten by the next call."""
        env, model, skip = self._env, self._env.model, self._env.frame_skip
        self._mujoco.mj_getState(model, env.data, self._start, self._physics)
        self._pool.rollout(
            model,
            self._data,
            self._start,
            np.repeat(sequences, skip, axis=1),
            initial_warmstart=env.data.qacc_warmstart,
            state=self._states,
        )
        # A state is: time, positions, velocities, and what no reward needs.
        first = np.broadcast_to(self._start, (len(sequences), 1, len(self._start)))
        states = np.concatenate([first, self._states], 1)
        positions, velocities = states[..., 1 : 1 + model.nq], states[..., 1 + model.nq : 1 + model.nq + model.nv]
        # The last stage of a Runge-Kutta step places bodies where the step ends (to third order); other integrators
        # leave them where it began.
        lag = 0 if model.opt.integrator == self._mujoco.mjtIntegrator.mjINT_RK4 else 1
        seen = positions[:, skip - lag : positions.shape[1] - lag : skip]
        return Trajectories(positions[:, ::skip], velocities[:, ::skip], seen, sequences)


class _Steps:
    """The steps of a private copy of the environment, for rewards that are known to the environment only."""

    def __init__(self, env: Any) -> None:
        self._env, self._copy = env, copy.deepcopy(env)

    def returns(self, sequences: np.ndarray) -> np.ndarray:
        return np.array([self._return(controls) for controls in sequences])

    def _return(self, controls: np.ndarray) -> float:
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
                break
        return total
