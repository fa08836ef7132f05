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

from typing import Any, NamedTuple

import numpy as np

from .mujoco_rewards import Plannable, Reward, Trajectories, reward_of
from .mujoco_rollouts import Guidance, Rollouts, Simulation, Steps, load_mujoco

__all__ = ["MPPITeacher"]


class _Settings(NamedTuple):
    """What suits a task.

    The first seven are the defaults of `MPPITeacher`'s arguments of these names. The others are for tasks that end when
    the robot falls, where torques without feedback fall in every sample and a horizon is short against an episode.

    Attributes:
        rescues: further iterations at a step from which the plan and nearly all samples fall.
        end_cost: what each step counts that an episode ended too early.
        guidance: what is added to the rewards `[K, H]` of an environment's trajectories.
        servo: if positive, the samples are targets of joint servos that give their full torque at this error (rad).
        substeps: if positive, how many time steps of Euler's method simulate a step, for speed.
    """

    horizon: int = 25
    samples: int = 64
    temperature: float = 0.1
    noise: tuple[float, float] = (0.05, 0.5)
    correlation: float = 0.8
    iterations: int = 1
    smoothing: float = 0.0
    rescues: int = 0
    end_cost: float = 0.0
    guidance: Guidance | None = None
    servo: float = 0.0
    substeps: int = 0


def _steady(env: Any, t: Trajectories) -> np.ndarray:
    """Nothing for a speed above 1.5 m/s, and an upright torso at the horizon: who runs faster soon falls."""
    speed = np.diff(t.positions[..., 0], axis=1) / env.dt
    bonus = -env._forward_reward_weight * np.maximum(speed - 1.5, 0)
    bonus[:, -1] -= 2000 * t.positions[:, -1, 2] ** 2 + 50 * t.velocities[:, -1, 2] ** 2
    return bonus


_SUITED = {
    "ReacherEnv": _Settings(15, 20, 0.05, (0.05, 0.05), 0.9, 2),
    "HalfCheetahEnv": _Settings(15, 64, 0.1, (0.2, 1.0), 0.3),
    "PusherEnv": _Settings(30, 64, 0.1, (0.02, 0.2), 0.9),
    "HopperEnv": _Settings(100, 40, 0.02, (0.02, 0.2), 0.95, 1, 0.0, 6, 5.0, _steady, 0.25, 2),
}


class MPPITeacher:
    """Plans each action on the MuJoCo simulator of a Gymnasium environment, which it leaves as it is.

    The tasks of `mujoco_rewards`, and those of this library that are `Plannable` (DM Control's, say), are simulated in
    MuJoCo's own threads of C; any other environment that derives from Gymnasium's `MujocoEnv` is stepped in a private
    copy, which is slower.

    Falling is what is hard about Hopper; for it the planner does more. It plans targets of joint servos, simulates with
    larger time steps, counts a fall as much worse than the horizon shows, does not ask for more than 1.5 m/s, and goes
    on improving a plan that falls.

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
        smoothing: s in [0, 1): after that, each control of the plan becomes (1 - s) u_t + s (u_(t-1) + u_(t+1)) / 2,
            where the last action stands before the first one. It takes the search's noise out of the actions, which
            are easier to imitate then.
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
        smoothing: float | None = None,
        reward: Reward | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        load_mujoco()
        from gymnasium.envs.mujoco import MujocoEnv

        simulator: Any = env.unwrapped
        plannable = isinstance(simulator, Plannable)
        if not (plannable or isinstance(simulator, MujocoEnv)):
            raise TypeError(f"MPPITeacher needs a MuJoCo environment of Gymnasium, got {type(simulator).__name__}")
        given: dict[str, Any] = {
            "horizon": horizon,
            "samples": samples,
            "temperature": temperature,
            "noise": (noise, noise) if isinstance(noise, int | float) else noise,
            "correlation": correlation,
            "iterations": iterations,
            "smoothing": smoothing,
        }
        known, suited = reward_of(simulator), _Settings()
        if plannable:
            suited = _Settings(**simulator.planning)
        elif known:
            suited = _SUITED.get(type(simulator).__name__, suited)
        if reward is not None:
            suited = suited._replace(guidance=None)  # which is for the task's own reward
        reward = reward or known
        settings = suited._replace(**{name: value for name, value in given.items() if value is not None})
        _check(settings, threads)
        self.settings, self.seed = settings, seed
        self._env = simulator
        self._observed: Any = simulator if _shows_observations(env) else None
        self._simulation: Simulation = Steps(simulator)
        if reward is not None:
            self._simulation = Rollouts(
                simulator,
                reward,
                samples=settings.samples,
                horizon=settings.horizon,
                threads=threads,
                end_cost=settings.end_cost,
                guidance=settings.guidance,
                servo=settings.servo,
                substeps=settings.substeps,
            )
        low, high = self._simulation.bounds
        # Standard deviations [K, 1, A]; the first sample is the plan itself.
        spread = np.geomspace(*settings.noise, settings.samples)
        spread[0] = 0.0
        self._deviation = spread[:, None, None] * (high - low) / 2
        steps = np.arange(settings.horizon)
        covariance = settings.correlation ** np.abs(steps[:, None] - steps)
        self._colour = np.linalg.cholesky(covariance)  # [H, H]: white noise times this has that covariance

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
            state: what the last call returned, the plan `[H, A]`, its age and what was before it `[1, A]`; None at
                first.
            episode_start: whether to forget the plan.
            deterministic: without effect: what is random is the search.

        Returns:
            The action, `[A]` with the dtype of the action space, and the next state.

        Raises:
            ValueError: if the observation is not one of the state in which the environment is.
        """
        self._check_observation(observation)
        forget = state is None or (episode_start is not None and bool(np.any(episode_start)))
        if forget:
            plan, age = np.tile(self._simulation.rest(), (self.settings.horizon, 1)), 0
            before = plan[:1]
        else:
            plan, age, before = np.asarray(state[0]), int(state[1]), np.asarray(state[2])
        generator = np.random.default_rng((self.seed, age))
        safe = False
        for iteration in range(self.settings.iterations + self.settings.rescues):
            if safe and iteration >= self.settings.iterations:
                break
            plan, safe = self._improve(plan, generator)
        if share := self.settings.smoothing:
            beside = np.concatenate([before, plan[:-1]]) + np.concatenate([plan[1:], plan[-1:]])
            plan = (1 - share) * plan + share / 2 * beside
        action = self._simulation.control(plan[0]).astype(self._env.action_space.dtype)
        return action, (np.concatenate([plan[1:], plan[-1:]]), np.array(age + 1), plan[:1])

    def _improve(self, plan: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, bool]:
        """The mean `[H, A]` of the sequences around a plan, weighted by their returns; whether that is safe."""
        white = generator.standard_normal((self.settings.samples, *plan.shape))
        sequences = np.clip(plan + self._deviation * (self._colour @ white), *self._simulation.bounds)
        returns, survives = self._simulation.returns(sequences)
        safe = bool(survives[0]) or bool(survives.mean() > 0.1)
        sound = np.isfinite(returns)  # where the simulation did not blow up
        if not sound.any():
            return plan, safe
        sequences, returns = sequences[sound], returns[sound]
        weights = np.exp((returns - returns.max()) / (self.settings.temperature * returns.std() + 1e-12))
        return np.tensordot(weights / weights.sum(), sequences, 1), safe

    def _check_observation(self, observation: Any) -> None:
        if self._observed is None or not isinstance(observation, np.ndarray):
            return
        shown = self._observed._get_obs()
        if observation.shape != shown.shape or not np.allclose(observation, shown, rtol=1e-4, atol=1e-5):
            raise ValueError(
                "the observation is not that of the state in which the environment is; "
                "MPPITeacher can only be asked about the environment it was made for, where that is now"
            )


def _check(settings: _Settings, threads: int) -> None:
    whole = {name: getattr(settings, name) for name in ("horizon", "samples", "iterations")} | {"threads": threads}
    for name, value in whole.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not settings.temperature > 0:
        raise ValueError(f"temperature must be positive, got {settings.temperature}")
    if len(settings.noise) != 2 or not all(value > 0 for value in settings.noise):
        raise ValueError(f"noise must be positive, one number or two, got {settings.noise}")
    for name in ("correlation", "smoothing"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(settings, name)}")


def _shows_observations(env: Any) -> bool:
    """Whether what the environment shows is what its simulator's environment shows."""
    transparent = {"PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "RecordEpisodeStatistics", "RecordVideo"}
    while env is not env.unwrapped:
        if type(env).__name__ not in transparent:
            return False
        env = env.env
    return hasattr(env, "_get_obs")
