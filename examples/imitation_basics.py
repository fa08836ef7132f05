"""Learn from a teacher: cloning, memory, DAgger, DART, hindsight goals.

One policy is learnt from demonstrations by maximum likelihood (or, where it has latent memory, by an ELBO), run in its
environment, and compared with its teacher. After R. Fox's lecture on imitation learning.

    python examples/imitation_basics.py --algo bc --env CartPole-v1 --episodes 10
    python examples/imitation_basics.py --algo latent --env pyrocontrol/TMaze-v0 --episodes 200
    python examples/imitation_basics.py --algo dagger --env pyrocontrol/Lane-v0
    python examples/imitation_basics.py --algo gcbc --env pyrocontrol/ReacherGoal-v0 --episodes 100

writes OUT/result.json (return, and success or imitation loss where the task has them, of learner and teacher),
OUT/demonstrations.npz, OUT/demonstrations.png, OUT/checkpoint.pt and OUT/learning_curve.png.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import matplotlib
import pyro
import torch
import tyro

import pyrocontrol as pc

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

TEST_SEED = 10_000


@dataclass
class Arguments:
    """Learn a policy from a teacher."""

    algo: Literal["bc", "rnn", "latent", "dagger", "dart", "gcbc"] = "bc"
    """bc: a reactive policy; rnn: a recurrent one; latent: discrete latent memory; dagger, dart: a reactive policy with
    data collected around it; gcbc: a goal-conditioned policy with hindsight goals"""
    env: str = "CartPole-v1"
    """CartPole-v1, Reacher-v5, Hopper-v5, pyrocontrol/TMaze-v0, pyrocontrol/Lane-v0 or pyrocontrol/ReacherGoal-v0"""
    episodes: int = 20
    """episodes of the teacher; dagger and dart spread them over their rounds"""
    rounds: int = 5
    """rounds of dagger and dart"""
    head: str = "auto"
    """the distribution of an action: categorical, gaussian, gaussian-shared, deterministic, mixture or squashed"""
    updates: int = 2_000
    """batches per training (dagger and dart train once a round)"""
    batch_size: int = 64
    """examples in a batch: steps for a reactive policy, episodes for one with memory"""
    test_episodes: int = 50
    """episodes of which learner and teacher are judged"""
    seed: int = 0
    """of everything"""
    device: str = "cpu"
    """where to train"""
    out: Path | None = None
    """folder for results, by default out/imitation_basics/ALGO-ENV-SEED; a run that was stopped goes on from there"""


def main(arguments: Arguments) -> None:
    """Collect, learn, evaluate, plot."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    pyro.enable_validation(False)
    env = checked(arguments)
    teacher = teacher_of(arguments.env, env)
    name = f"{arguments.algo}-{arguments.env.split('/')[-1]}-{arguments.seed}"
    out = arguments.out or Path("out/imitation_basics") / name
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    learner = Learner(arguments, out)
    try:
        policy, demonstrations = learnt(arguments, env, teacher, learner, out)
    except pc.envs.CollectionError as error:
        if error.collected is not None:
            error.collected.save(out / "demonstrations.npz")
        raise SystemExit(f"{error}\nwhat was collected is in {out / 'demonstrations.npz'}") from error
    demonstrations.save(out / "demonstrations.npz")
    demonstrations.plot(out / "demonstrations.png")
    print(demonstrations.summary())
    if policy is None:
        print("stopped; the same command goes on from its checkpoint")
        return
    seconds = time.perf_counter() - start
    rows = []
    for method, actor in ((arguments.algo, policy), ("teacher", teacher)):
        for metric, values in pc.envs.evaluate_policy(env, actor, arguments.test_episodes, seed=TEST_SEED).items():
            value = sum(values) / len(values)
            setting = {"episodes": arguments.episodes, "updates": arguments.updates}
            rows.append(
                pc.inference.row(method, arguments.env, metric, value, seed=arguments.seed, seconds=seconds, **setting)
            )
            print(f"{method:>8} {metric:>16} {value:9.3f}")
    pc.inference.write_results(out / "result.json", "imitation_basics", rows)
    plot_learning_curve(out / "learning_curve.png", learner.losses)
    print(f"done in {time.perf_counter() - start:.0f} s; results in {out}")


def checked(arguments: Arguments) -> gymnasium.Env[Any, Any]:
    """Return the environment, or exit with one line that says what is wrong, before anything is collected."""
    for name in ("episodes", "rounds", "updates", "batch_size", "test_episodes"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.algo in ("dagger", "dart") and arguments.episodes < arguments.rounds:
        raise SystemExit(f"{arguments.algo} needs an episode for each of its {arguments.rounds} rounds: --episodes")
    try:
        pc.inference.verify_folder(arguments.out)
        pc.inference.verify_device(arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if arguments.env not in TASKS:
        raise SystemExit(f"there is no teacher for {arguments.env}; there is one for {', '.join(TASKS)}")
    env = gymnasium.make(arguments.env)
    if arguments.algo == "gcbc" and "achieved_goal" not in pc.models.observation_parts(env.observation_space):
        raise SystemExit(f"gcbc needs a task with goals, such as pyrocontrol/ReacherGoal-v0; {arguments.env} has none")
    try:
        pc.models.ReactivePolicy(env.observation_space, env.action_space, head=arguments.head)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"--head {arguments.head} on {arguments.env}: {error}") from error
    return env


def learnt(arguments: Arguments, env: Any, teacher: Any, learner: Learner, out: Path) -> tuple[Any, Any]:
    """Return the policy, None if Ctrl-C stopped its training, and the demonstrations that it was learnt from."""
    if arguments.algo in ("dagger", "dart"):
        loop: Any = pc.inference.dagger if arguments.algo == "dagger" else pc.inference.dart
        episodes = arguments.episodes // arguments.rounds
        found = loop(env, teacher, learner, rounds=arguments.rounds, episodes=episodes, seed=arguments.seed)
        return found.policy, found.demonstrations
    demonstrations = pc.envs.collect(env, teacher, arguments.episodes, seed=arguments.seed)
    demonstrations.save(out / "demonstrations.npz")
    return learner(demonstrations), demonstrations


def teacher_of(name: str, env: gymnasium.Env[Any, Any]) -> Any:
    """Return who shows how it is done in a task."""
    return TASKS[name](env)


TASKS: dict[str, Any] = {
    "CartPole-v1": lambda env: pc.envs.CartPoleTeacher(),
    "pyrocontrol/TMaze-v0": lambda env: pc.envs.TMazeTeacher(),
    "pyrocontrol/Lane-v0": lambda env: pc.envs.LaneTeacher(),
    "Reacher-v5": pc.envs.MPPITeacher,
    "Hopper-v5": pc.envs.MPPITeacher,
    "pyrocontrol/ReacherGoal-v0": pc.envs.MPPITeacher,
}


class Learner:
    """What a person writes to learn from demonstrations: a policy, its guide, a bound, an optimiser."""

    def __init__(self, arguments: Arguments, out: Path) -> None:
        self.arguments, self.out = arguments, out
        self.trainings = 0
        self.losses: list[tuple[int, float]] = []

    def __call__(self, demonstrations: pc.envs.Demonstrations) -> Any:
        """Return the policy learnt from demonstrations, None if Ctrl-C stopped the training."""
        arguments, demonstrations = self.arguments, demonstrations.to(dtype=torch.float32)
        spaces = demonstrations.observation_space, demonstrations.action_space
        pyro.clear_param_store()
        policy: Any
        data: Any = demonstrations
        loss: Any
        if arguments.algo == "latent":
            policy = pc.models.LatentMemoryPolicy(*spaces, head=arguments.head)
            loss = pc.inference.StepwiseKL_ELBO()(policy, pc.guides.MemoryGuide(policy))
        elif arguments.algo == "gcbc":
            data = pc.inference.hindsight(demonstrations, "achieved_goal", strategy="future", seed=arguments.seed)
            policy = pc.models.GoalConditionedPolicy(*spaces, goal_size=data.goals.shape[-1], head=arguments.head)
            loss = pyro.infer.Trace_ELBO()(policy, policy.guide)
        else:
            kind = pc.models.RecurrentPolicy if arguments.algo == "rnn" else pc.models.ReactivePolicy
            policy = kind(*spaces, head=arguments.head)
            data = demonstrations if arguments.algo == "rnn" else demonstrations.transitions()
            loss = pyro.infer.Trace_ELBO()(policy, policy.guide)
        if arguments.algo not in ("latent", "rnn"):
            policy.normalize(data)
        self.trainings += 1
        several = arguments.algo in ("dagger", "dart")
        result = pc.inference.fit(
            (loss, torch.optim.Adam(loss.parameters(), lr=1e-3)),
            data,
            steps=arguments.updates,
            batch_size=min(arguments.batch_size, len(data)),
            seed=arguments.seed,
            out=self.out / f"round-{self.trainings}" if several else self.out,
            device=arguments.device,
        )
        self.losses += [(arguments.updates * (self.trainings - 1) + step, value) for step, value in result.losses]
        if result.interrupted:
            if several:
                raise KeyboardInterrupt
            return None
        return policy.cpu()


def plot_learning_curve(path: Path, losses: list[tuple[int, float]]) -> None:
    """Draw the loss of every training, one after the other."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(*zip(*losses, strict=True))
    axes.set(xlabel="updates", ylabel="loss of a batch (nats)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
