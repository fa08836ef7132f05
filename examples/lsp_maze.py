"""A maze whose only reward is at the end of it: a level that moves in any direction, and one above that finds the way.

After T. Haarnoja, K. Hartikainen, P. Abbeel and S. Levine, "Latent Space Policies for Hierarchical Reinforcement
Learning" (2018), section 6.3: the lowest level is trained on open floor, where all that counts is speed, frozen, and
embedded in the maze; the next one acts on its latents, each held for three steps, its own latent kept for an episode.
What it is compared with is one level, which learns from scratch or goes on from such training, with the maze's reward
alone or with that for motion added.

    python examples/lsp_maze.py --goal 0 --out out/maze                         # two levels
    python examples/lsp_maze.py --learner sql --out out/sql                     # soft Q-learning at both
    python examples/lsp_maze.py --levels 1 --temperature learned --out out/one  # one level, trained on
    python examples/lsp_maze.py --levels 1 --temperature learned --pretrain 0 --motion 1 --out out/s  # from scratch
    python examples/lsp_maze.py --task AntMaze --floor-lr 1e-3 --pretrain 400000 --steps 300000 --out out/ant

writes OUT/result.json (`final_distance` to the goal, m, and `success` at every evaluation), OUT/level-N/ (checkpoint,
replay and TensorBoard of each level), OUT/hierarchy.pt (all levels as one policy), OUT/learning_curve.png,
OUT/tracks.png and OUT/policy.gif. A run that was stopped goes on from its checkpoints. With --pretrained FOLDER the
training on open floor is kept there, for several runs that differ in the goal alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol as pc
from plots import plot_curves
from pyrocontrol.envs.point_maze import GOAL_RADIUS, GOALS, WALLS

# By task: where it is learnt to move.
OPEN_FLOOR = {"PointMaze": "PointMove", "AntMaze": "AntMove"}
HOLD = 3  # environment steps for which a level above the lowest keeps an action
PLACE = 2  # numbers of an observation that say where the body is; the lowest level of several does not see them
EVALUATION_SEED = 10_000
# By task: of rewards on open floor, with temperature 1. Table 2 has 3, and the paper 4 million steps for it.
VARIED_SCALES = {"PointMaze": 3.0, "AntMaze": 30.0}
CHECKPOINT_EVERY = 10_000  # environment steps
FILM_FRAMES = 150  # of an episode that does not end before its time

Curve = list[tuple[int, dict[str, float]]]


@dataclass
class Arguments:
    """Learn to move, then to find a goal in the maze."""

    task: Literal["PointMaze", "AntMaze"] = "PointMaze"
    """a point or an ant in the maze"""
    goal: int = 0
    """which of the three goals: 0, 1 or 2"""
    levels: int = 2
    """1: a policy that acts in the maze itself; more: those above the lowest act on latents"""
    guide: Literal["flow", "flow-paper", "spline", "gaussian"] = "flow"
    """what the policy of each level is"""
    learner: Literal["sac", "sql"] = "sac"
    """soft actor-critic or soft Q-learning"""
    motion: float = 0.0
    """weight of the reward for motion, which is added to that of the maze"""
    temperature: Literal["learned", "fixed"] = "fixed"
    """of soft actor-critic; fixed: 1, as is that of soft Q-learning and of the lowest of several levels"""
    reward_scale: float = 1.0
    """what rewards are multiplied by; for the lowest of several levels always 3 (point) or 30 (ant)"""
    pretrain: int = 30_000
    """environment steps on open floor, 0 for none"""
    steps: int = 30_000
    """environment steps in the maze, all levels together"""
    upright: bool = True
    """on open floor, end an ant's episode where it lies on its back; the paper, which has more steps, does not"""
    start: int = 1000
    """environment steps of each level, taken and remembered, before its first update"""
    lr: float = 3e-4
    """of policies, critics and temperature"""
    floor_lr: float | None = None
    """that of the lowest of several levels, by default the same"""
    value_range: tuple[float, float] | None = None
    """least and greatest return of an episode in the maze (0 1000 without --motion), between which levels above the
    lowest keep their soft values"""
    seed: tuple[int, ...] = (0,)
    """of the initial weights, the episodes and all noise; several are learnt at once, each in a folder OUT/seed-N"""
    evaluate_every: int = 3_000
    """environment steps between evaluations"""
    episodes: int = 10
    """episodes of each evaluation"""
    pretrained: Path | None = None
    """folder of the training on open floor, by default in OUT; runs that share it differ in --goal and --motion alone,
    and do not train there at the same time"""
    device: str = "cpu"
    """where to learn"""
    compile: bool = False
    """compile the learners' steps, which takes a minute or two and a C++ compiler"""
    capture: bool = False
    """on a GPU, make the learners' steps, and those of several what they act by, CUDA graphs"""
    out: Path = Path("out/maze")
    """folder for results; a run that was stopped goes on from its checkpoints"""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, draw."""
    checked(arguments)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    try:
        with claimed_folders(arguments):
            lowest, moving = learnt_to_move(arguments) if arguments.pretrain else (None, 0.0)
            learnt = None if arguments.pretrain and lowest is None else learnt_the_maze(arguments, lowest)
    except (ValueError, FloatingPointError) as error:  # most of all, OUT holds another run
        raise SystemExit("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if learnt is None:
        print("stopped; the same command goes on from there")
        return
    for seed, (curve, hierarchy, seconds) in zip(arguments.seed, learnt, strict=True):
        report(arguments, seed, curve, hierarchy, seconds, moving)
    # MuJoCo that has found no OpenGL ends the process when it is asked a second time.
    all(film(arguments, seed, hierarchy) for seed, (_, hierarchy, _) in zip(arguments.seed, learnt, strict=True))


def report(arguments: Arguments, seed: int, curve: Curve, policy: Any, seconds: float, moving: float) -> None:
    """Write what one seed came to, and draw where it goes."""
    out = folder(arguments.out, arguments, seed)
    setting = setting_of(arguments) | {"compile": arguments.compile, "device": arguments.device}
    setting |= {"budget": arguments.steps, "together": len(arguments.seed)}
    rows = [
        pc.inference.row(
            arguments.learner, arguments.task, metric, values[metric], seed=seed, seconds=seconds, steps=step, **setting
        )
        for metric in ("final_distance", "success")
        for step, values in curve
    ]
    pc.inference.write_results(out / "result.json", "lsp_maze", rows)
    distances = [(step, values["final_distance"]) for step, values in curve]
    plot_curves(
        out / "learning_curve.png",
        {"final distance (m)": {f"goal {arguments.goal}": distances}},
        along="environment steps in the maze",
        log=False,
    )
    distance, success, tracks = rollouts(policy, maze(arguments, motion=0.0), arguments.episodes)
    plot_tracks(out / "tracks.png", arguments.goal, tracks)
    print(
        f"final distance {distance:.2f} m, goal reached in {success:.0%} of {arguments.episodes} episodes; "
        f"{moving:.0f} s to learn to move, {seconds:.0f} s for the maze; results in {out}"
    )


def setting_of(arguments: Arguments) -> dict[str, Any]:
    """Return what makes a run what it is, but for its task, steps and seeds."""
    names = (
        "goal",
        "levels",
        "guide",
        "learner",
        "motion",
        "temperature",
        "reward_scale",
        "lr",
        "pretrain",
        "start",
        "episodes",
    )
    setting = {name: getattr(arguments, name) for name in names}
    if arguments.levels > 1:
        setting["floor_reward_scale"] = VARIED_SCALES[arguments.task]
        setting["floor_lr"] = arguments.lr if arguments.floor_lr is None else arguments.floor_lr
        setting |= {} if arguments.value_range is None else {"value_range": list(arguments.value_range)}
    if arguments.task == "AntMaze" and arguments.pretrain:
        setting["upright"] = arguments.upright
    return setting


@contextmanager
def claimed_folders(arguments: Arguments) -> Iterator[None]:
    """Make OUT, and where the training on open floor is kept, this run's, or raise ValueError."""
    run = {"seed": arguments.seed, "batch": together(arguments)}
    of_floor = run | {"task": OPEN_FLOOR[arguments.task], "pretrain": arguments.pretrain}
    whole = setting_of(arguments) | {"task": arguments.task} | run
    with ExitStack() as stack:
        if arguments.pretrained is not None:
            stack.enter_context(pc.inference.claim_folder(arguments.pretrained, of_floor))
        given = whole | {"evaluate_every": arguments.evaluate_every}
        stack.enter_context(pc.inference.claim_folder(arguments.out, given))
        yield


def folder(parent: Path, arguments: Arguments, seed: int) -> Path:
    """Return where a seed has its files."""
    return parent if len(arguments.seed) == 1 else parent / f"seed-{seed}"


def checked(arguments: Arguments) -> None:
    """Exit with one line that says what is wrong, if something is."""
    least = {"levels": 1, "steps": 1, "start": 1, "evaluate_every": 1, "episodes": 1, "pretrain": 0}
    for name, number in least.items():
        if getattr(arguments, name) < number:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {number}, got {getattr(arguments, name)}")
    seeds = set(arguments.seed)
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(seeds) < len(arguments.seed):
        raise SystemExit(f"--seed must be from 0 to 2**32 - 1, and several be different, got {arguments.seed}")
    if arguments.compile and arguments.guide == "spline":
        raise SystemExit("--guide spline cannot be compiled: Zuko's flows are not made for it")
    for name in ("reward_scale", "lr", "floor_lr"):
        value = getattr(arguments, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SystemExit(f"--{name.replace('_', '-')} must be positive, got {value}")
    if arguments.value_range is not None:
        if arguments.levels == 1:
            raise SystemExit("--value-range is for levels above the lowest, and there are none")
        least_return, greatest = arguments.value_range
        if not (math.isfinite(greatest - least_return) and least_return < greatest):
            raise SystemExit(f"--value-range must be the least and the greatest return, got {arguments.value_range}")
    if arguments.learner == "sql" and arguments.temperature == "learned":
        raise SystemExit("--temperature learned is soft actor-critic's: that of --learner sql is 1")
    if arguments.task == "PointMaze" and not arguments.upright:
        raise SystemExit("--no-upright is for an ant: a point has no back")
    if arguments.levels == 1 and arguments.floor_lr is not None:
        raise SystemExit("--floor-lr is for the lowest of several levels: --levels 1 goes on with --lr")
    shares = {"--pretrain": arguments.pretrain or math.inf}
    shares["--steps"] = arguments.steps // (max(1, arguments.levels - 1) if arguments.pretrain else arguments.levels)
    for name, share in shares.items():
        if arguments.start >= share:
            raise SystemExit(f"--start {arguments.start} leaves no update: {name} gives a level {share} steps")
    if arguments.levels > 1 and not arguments.pretrain:
        raise SystemExit("--pretrain 0 leaves nothing to act through: --levels 1, or steps on open floor")
    if arguments.pretrained is not None and not arguments.pretrain:
        raise SystemExit("--pretrained is where --pretrain steps are kept, and there are none")
    try:
        pc.inference.verify_folder(arguments.out)
        pc.inference.verify_folder(arguments.pretrained)
        pc.inference.verify_device(arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    try:
        with closing(maze(arguments)) as env:
            sizes = [int(space.shape[0]) for space in (env.observation_space, env.action_space)]  # type: ignore[index]
    except (ValueError, gymnasium.error.Error) as error:
        raise SystemExit(f"--task {arguments.task}: {error}") from error
    try:
        make_learner(arguments, arguments.levels - 1, *sizes)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error


# -- learning ---------------------------------------------------------------------------------------------------------


def maze(arguments: Arguments, **given: Any) -> gymnasium.Env[Any, Any]:
    """Return the maze of a run."""
    given = {"goal": arguments.goal, "motion": arguments.motion} | given
    return gymnasium.make(f"pyrocontrol/{arguments.task}-v0", **given)


def make_learner(arguments: Arguments, level: int, observations: int, actions: int) -> Any:
    """Return the learner of a level: the lowest acts within (-1, 1), the others on latents, whose prior is N(0, I).

    The lowest of several is to know many ways to move: its temperature is that of the paper, its scale of rewards for
    the point that of the paper's ant. A single level is to be good in the maze, whatever it was trained on before.
    """
    kinds: dict[str, Any] = {
        "flow": pc.guides.FlowPolicy,
        "flow-paper": pc.guides.FlowPolicy.paper,
        "spline": pc.guides.ZukoPolicy,
        "gaussian": pc.guides.GaussianPolicy,
    }
    policy = kinds[arguments.guide](observations, actions, squash=level == 0)
    varied = level == 0 and arguments.levels > 1
    scale = VARIED_SCALES[arguments.task] if varied else arguments.reward_scale
    lr = arguments.floor_lr if varied and arguments.floor_lr is not None else arguments.lr
    captured = arguments.capture and not together(arguments)
    given: dict[str, Any] = dict(lr=lr, reward_scale=scale, fixed_latent=level > 0, capture=captured)
    if level > 0:
        given |= {"prior": pc.models.GaussianPrior(actions), "value_range": arguments.value_range}
    if arguments.learner == "sql":
        return pc.inference.SoftQLearning(policy, observations, actions, **given)
    given["temperature"] = 1.0 if varied or arguments.temperature == "fixed" else "learned"
    return pc.inference.SoftActorCritic(policy, observations, actions, **given)


def together(arguments: Arguments) -> bool:
    """Whether the learners of all seeds are one batch."""
    return len(arguments.seed) > 1 or arguments.compile


def learnt_to_move(arguments: Arguments) -> tuple[list[Any] | None, float]:
    """Return the lowest levels' learners, trained on open floor, None if that was stopped, and the seconds it took."""
    floor = f"pyrocontrol/{OPEN_FLOOR[arguments.task]}-v0"
    print(f"learning to move in {floor}, {arguments.pretrain} steps")
    given = {"upright": arguments.upright} if arguments.task == "AntMaze" else {}
    envs, learners, outs = [], [], []
    for seed in arguments.seed:
        envs.append(gymnasium.make(floor, positions=arguments.levels == 1, **given))
        pyro.set_rng_seed(seed)
        sizes = [int(space.shape[0]) for space in (envs[-1].observation_space, envs[-1].action_space)]  # type: ignore[index]
        learners.append(make_learner(arguments, 0, *sizes))
        outs.append(folder(arguments.pretrained or arguments.out / "open-floor", arguments, seed))
    common: dict[str, Any] = {"steps": arguments.pretrain, "start": arguments.start, "device": arguments.device}
    if together(arguments):
        batch = pc.inference.SeedBatch(learners, compile=arguments.compile, capture=arguments.capture)
        results = pc.inference.learn_together(batch, envs, seeds=arguments.seed, outs=outs, **common)
    else:
        results = [pc.inference.learn(learners[0], envs[0], seed=arguments.seed[0], out=outs[0], **common)]
    for env in envs:
        env.close()
    return None if results[0].interrupted else learners, results[0].seconds


def learnt_the_maze(arguments: Arguments, lowest: list[Any] | None) -> list[tuple[Curve, Any, float]] | None:
    """Learn all that is learnt in the maze; None if it was stopped.

    Returns:
        For each seed the evaluations, each with the environment steps before it (at most: an episode may end while an
        action is held), the policy, and the seconds of learning.
    """
    embed = partial(pc.envs.LatentActionEnv, observation=slice(PLACE, None), hold=HOLD)
    above = partial(pc.envs.LatentActionEnv, hold=HOLD)
    several = arguments.levels > 1
    below: list[list[Any]] = [[] for _ in arguments.seed]
    if several and lowest:
        below = [[learner.policy] for learner in lowest]
    taken_on = iter(lowest or [])  # by a single level, one seed after the other
    count = arguments.levels - len(below[0])

    def compose(policies: list[Any]) -> Any:
        seen = [slice(PLACE, None) if several else None] + [None] * (len(policies) - 1)
        return pc.envs.Hierarchy(
            policies,
            seen,
            holds=[HOLD] * (len(policies) - 1),
            fixed_latent=several,
            observation_size=policies[-1].observation_size,
            action_space=box,
        ).cpu()

    def learner_of(level: int, observations: int, actions: int) -> Any:
        return next(taken_on) if level == 0 and lowest else make_learner(arguments, level, observations, actions)

    def evaluate(policies: list[Any]) -> Callable[[int], dict[str, float]]:
        def measured(_step: int) -> dict[str, float]:
            # Without what motion may be worth: the same for all.
            distance, success, _ = rollouts(compose(policies), maze(arguments, motion=0.0), arguments.episodes)
            return {"final_distance": distance, "success": success}

        return measured

    with closing(maze(arguments)) as env:
        box: Any = env.action_space
    # An action of level n is held for HOLD^n environment steps.
    holds = [HOLD ** (len(below[0]) + n) for n in range(count)]
    held = f", {holds[0]} of them a step below" if holds[0] > 1 else ""
    print(f"learning the maze, {arguments.steps} steps{held}")
    each = [max(1, arguments.steps // count // hold) for hold in holds]
    levels = [partial(maze, arguments)] * count
    common: dict[str, Any] = dict(
        embed=[embed, *[above] * (arguments.levels - 2)][: arguments.levels - 1],
        evaluate=evaluate,
        device=arguments.device,
        of_level=[
            dict(
                evaluate_every=max(1, arguments.evaluate_every // hold),
                # As many updates as environment steps, whatever a level holds its actions for.
                start=arguments.start // hold,
                updates_per_step=hold,
                checkpoint_every=max(1, CHECKPOINT_EVERY // hold),
            )
            for hold in holds
        ],
    )
    outs = [folder(arguments.out, arguments, seed) for seed in arguments.seed]
    if together(arguments):
        batch = partial(pc.inference.SeedBatch, compile=arguments.compile, capture=arguments.capture)
        common |= {"below": below, "batch": batch}
        results = pc.inference.train_stagewise_together(
            levels, learner_of, each, seeds=arguments.seed, outs=outs, **common
        )
    else:
        common |= {"below": below[0], "seed": arguments.seed[0], "out": outs[0]}
        results = [pc.inference.train_stagewise(levels, learner_of, each, **common)]
    if any(result.interrupted for result in results):
        return None
    learnt = []
    for out, result in zip(outs, results, strict=True):
        curve: Curve = []
        past = 0
        for level, part in enumerate(result.results, len(below[0])):
            curve += [(past + step * HOLD**level, values) for step, values in part.evaluations]
            past = curve[-1][0] if curve else 0
        hierarchy = compose(result.policies)
        hierarchy.save(out / "hierarchy.pt")
        learnt.append((curve, hierarchy, sum(part.seconds for part in result.results)))
    return learnt


def rollouts(policy: Any, env: gymnasium.Env[Any, Any], episodes: int) -> tuple[float, float, list[np.ndarray]]:
    """Act in the maze, actions sampled; the same episodes and noise at every call.

    Returns:
        Mean distance to the goal where episodes end (m), the fraction that reached it, and where the body was in each
        step of each episode, ``[steps, 2]``.
    """
    distances, reached, tracks = [], [], []
    torch.manual_seed(EVALUATION_SEED)
    acting = pc.models.Episodes(env, policy)
    for episode in range(episodes):
        acting.begin(seed=EVALUATION_SEED + episode)
        track = [acting.info["position"], *(step.info["position"] for step in acting)]
        distances.append(acting.info["distance"])
        reached.append(acting.info["is_success"])
        tracks.append(np.array(track))
    env.close()
    return float(np.mean(distances)), float(np.mean(reached)), tracks


# -- pictures ---------------------------------------------------------------------------------------------------------


def plot_tracks(path: Path, goal: int, tracks: list[np.ndarray]) -> None:
    """Draw the maze from above, its goal, and where the body went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for x, y, half_x, half_y in WALLS:
        axes.add_patch(patches.Rectangle((x - half_x, y - half_y), 2 * half_x, 2 * half_y, color="0.4"))
    axes.add_patch(patches.Circle(GOALS[goal], GOAL_RADIUS, color="tab:green", alpha=0.4))
    for track in tracks:
        axes.plot(*track.T, linewidth=1)
    axes.set(xlim=(-3, 15), ylim=(-9, 9), aspect="equal", xlabel="x (m)", ylabel="y (m)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def film(arguments: Arguments, seed: int, policy: Any) -> bool:
    """Film an episode; where nothing can be rendered, say so and return False."""
    small = {"width": 240, "height": 240} if arguments.task == "AntMaze" else {}
    try:
        env = maze(arguments, render_mode="rgb_array", **small)
        limit = env.spec.max_episode_steps if env.spec else None
        every = max(1, (limit or FILM_FRAMES) // FILM_FRAMES)
        torch.manual_seed(EVALUATION_SEED)
        acting = pc.models.Episodes(env, policy)
        acting.begin(seed=EVALUATION_SEED)
        frames: list[Any] = [env.render(), *(env.render() for step, _ in enumerate(acting, 1) if step % every == 0)]
        frames.append(env.render())
        pc.envs.save_video(
            folder(arguments.out, arguments, seed) / "policy.gif", frames, fps=env.metadata["render_fps"]
        )
        env.close()
    except Exception as error:  # a machine without OpenGL is no reason to lose a run
        print(f"no film: {error or type(error).__name__}")
        return False
    return True


if __name__ == "__main__":
    main(tyro.cli(Arguments))
