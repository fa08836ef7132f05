"""Latent space policies on Gymnasium's continuous-control tasks: one level, or a hierarchy learnt level by level.

After T. Haarnoja, K. Hartikainen, P. Abbeel and S. Levine, "Latent Space Policies for Hierarchical Reinforcement
Learning" (2018): a policy is the guide of a model in which actions are latent and optimality is observed. A flow as the
guide is learnt by soft actor-critic; frozen, its latents are the actions of the next level.

    python examples/lsp_benchmark.py --task HalfCheetah-v5 --steps 200000 --out out/lsp
    python examples/lsp_benchmark.py --task Ant-v5 --levels 2 --steps 400000 --out out/lsp_2
    python examples/lsp_benchmark.py --task Hopper-v5 --guide mixture --out out/gmm
    python examples/lsp_benchmark.py --task Hopper-v5 --learner ppo --out out/ppo
    python examples/lsp_benchmark.py --task Hopper-v5 --seed 0 1 2 --compile --out out/lsp

writes OUT/result.json (`return` at every evaluation; `return_mode`, without noise, at the end), OUT/level-N/
(checkpoint, replay and TensorBoard of each level), OUT/hierarchy.pt (all levels as one policy), OUT/learning_curve.png
and OUT/policy.gif. A run that was stopped goes on from its checkpoints. Latent space policies are evaluated by
sampling, as in the paper; DDPG and PPO, of stable-baselines3, without noise, as is their custom. Those two go on from
their last evaluation (OUT/checkpoint-STEP/model.zip), with a new episode.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import time
from contextlib import closing
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
from pyrocontrol.models.policies.level import check_box

# What rewards are multiplied by where the temperature is fixed: Table 2 of the paper; soft Q-learning has the numbers
# that its authors' code gives for these tasks.
REWARD_SCALES = {"Swimmer": 100.0, "Hopper": 1.0, "Walker2d": 3.0, "HalfCheetah": 1.0, "Ant": 3.0, "Humanoid": 3.0}
SQL_SCALES = {"Swimmer": 30.0, "Hopper": 30.0, "Walker2d": 10.0, "HalfCheetah": 30.0, "Ant": 300.0, "Humanoid": 100.0}
BASELINES = ("ddpg", "ppo")
# What only some learners and guides have a use for.
FIXED = ("sac-first", "sql")  # their temperature
SOFT = ("levels", "guide", "couplings", "components", "gradient", "particles", "start", "temperature", "lr")
EVALUATION_SEED = 10_000  # of the first episode, as in pc.inference.evaluation
FILM_STEPS = 300


@dataclass
class Arguments:
    """Learn a latent space policy, or what it is compared with."""

    task: str = "HalfCheetah-v5"
    """Gymnasium's id of an environment with a Box of actions"""
    levels: int = 1
    """levels, learnt one after the other; each gets its share of the steps"""
    couplings: int = 2
    """of each level's flow"""
    guide: Literal["flow", "flow-paper", "spline", "gaussian", "mixture"] = "flow"
    """what the policy is; flow-paper: the narrow form of the paper"""
    components: int = 4
    """normals of a mixture"""
    learner: Literal["sac", "sac-first", "sql", "ddpg", "ppo"] = "sac"
    """soft actor-critic, its first form (fixed temperature, one Q), soft Q-learning; or one of stable-baselines3"""
    gradient: Literal["pathwise", "score"] | None = None
    """of a soft actor-critic's policy: through the actions, or by the likelihood ratio; by default through them where
    that is possible"""
    particles: int | None = None
    """actions of each state in the policy's loss; by default 1, and 4 for the likelihood ratio"""
    steps: int = 200_000
    """environment steps, all levels together"""
    start: int = 1000
    """steps of each level, taken and remembered, before its first update"""
    temperature: Literal["learned", "fixed"] = "learned"
    """of soft actor-critic; fixed: 1, and rewards scaled as in the paper, as sac-first has it; soft Q-learning has 1,
    and the scales of its authors"""
    lr: float = 1e-3
    """of the soft learners, for policy, critics and temperature"""
    seed: tuple[int, ...] = (0,)
    """of the initial weights, the episodes and all noise; several are learnt at once, each in a folder OUT/seed-N"""
    evaluate_every: int = 10_000
    """steps between evaluations"""
    episodes: int = 5
    """of each evaluation"""
    device: str = "cpu"
    """where to learn"""
    capture: bool = False
    """on a GPU, make the learners' steps, and those of several what they act by, CUDA graphs"""
    compile: bool = False
    """compile the learners' steps, which takes a minute or two and a C++ compiler"""
    out: Path = Path("out/lsp")
    """folder for results; a run that was stopped goes on from its checkpoints"""


def main(arguments: Arguments) -> None:
    """Learn, evaluate, draw."""
    checked(arguments)
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    whole = {"task": arguments.task, "seed": arguments.seed} | setting_of(arguments) | {"batch": together(arguments)}
    if arguments.learner in BASELINES:
        whole["steps"] = arguments.steps  # what goes on are runs that were stopped
    try:
        with pc.inference.claim_folder(arguments.out, whole):
            learnt = [baseline(arguments)] if arguments.learner in BASELINES else latent_space_policies(arguments)
    except (ValueError, FloatingPointError) as error:  # most of all, OUT holds another run
        raise SystemExit("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if learnt is None:
        print("stopped; the same command goes on from there")
        return
    for seed, (curve, policy, seconds) in zip(arguments.seed, learnt, strict=True):
        report(arguments, seed, curve, policy, seconds)
    # MuJoCo that has found no OpenGL ends the process when it is asked a second time.
    all(film(arguments, seed, policy) for seed, (_, policy, _) in zip(arguments.seed, learnt, strict=True))


def report(arguments: Arguments, seed: int, curve: list[tuple[int, float]], policy: Any, seconds: float) -> None:
    """Write what one seed came to."""
    out = folder(arguments, seed)
    setting = setting_of(arguments) | {"compile": arguments.compile, "device": arguments.device}
    setting |= {"budget": arguments.steps, "together": len(arguments.seed)}
    found = [("return", *point) for point in curve] + [("return_mode", curve[-1][0], mode_return(arguments, policy))]
    rows = [
        pc.inference.row(
            arguments.learner, arguments.task, metric, value, seed=seed, seconds=seconds, steps=step, **setting
        )
        for metric, step, value in found
    ]
    pc.inference.write_results(out / "result.json", "lsp", rows)
    plot_curves(out / "learning_curve.png", {"return": {arguments.task: curve}}, along="environment steps", log=False)
    print(f"return {curve[-1][1]:.0f} after {curve[-1][0]} steps, {seconds:.0f} s; results in {out}")


def unused(arguments: Arguments) -> set[str]:
    """Return the options of soft learners that a run has no use for."""
    if arguments.learner in BASELINES:
        return {*SOFT}
    names = {"temperature"} if arguments.learner in FIXED else set()
    names |= {"gradient", "particles"} if arguments.learner == "sql" else set()
    names |= {"couplings"} if arguments.guide not in ("flow", "flow-paper") else set()
    return names | ({"components"} if arguments.guide != "mixture" else set())


def setting_of(arguments: Arguments) -> dict[str, Any]:
    """Return what makes a run what it is, but for its task, steps and seeds."""
    names = ("learner", *SOFT, "evaluate_every", "episodes")
    return {name: getattr(arguments, name) for name in names if name not in unused(arguments)}


def checked(arguments: Arguments) -> None:
    """Exit with one line that says what is wrong, if something is."""
    least = dict.fromkeys(("levels", "couplings", "components", "start", "evaluate_every", "episodes"), 1)
    for name, number in (least | {"steps": arguments.levels}).items():
        if getattr(arguments, name) < number:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {number}, got {getattr(arguments, name)}")
    if arguments.particles is not None and arguments.particles < 1:
        raise SystemExit(f"--particles must be at least 1, got {arguments.particles}")
    seeds = set(arguments.seed)
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(seeds) < len(arguments.seed):
        raise SystemExit(f"--seed must be from 0 to 2**32 - 1, and several be different, got {arguments.seed}")
    if arguments.learner in BASELINES and (len(arguments.seed) > 1 or arguments.compile or arguments.capture):
        raise SystemExit(f"--learner {arguments.learner} learns one seed at a time, neither compiled nor captured")
    if not (arguments.lr > 0 and math.isfinite(arguments.lr)):
        raise SystemExit(f"--lr must be positive, got {arguments.lr}")
    for name in SOFT:
        if name in unused(arguments) and getattr(arguments, name) != getattr(Arguments, name):
            raise SystemExit(f"--learner {arguments.learner} --guide {arguments.guide} has no use for --{name}")
    if arguments.learner not in BASELINES and arguments.start >= arguments.steps // arguments.levels:
        share = arguments.steps // arguments.levels
        raise SystemExit(f"--start {arguments.start} leaves no update: each level has {share} steps")
    if arguments.levels > 1 and arguments.guide == "mixture":
        raise SystemExit("--guide mixture has no latents that a next level could act on: flow, spline or gaussian")
    if arguments.compile and arguments.guide == "spline":
        raise SystemExit("--guide spline cannot be compiled: Zuko's flows are not made for it")
    try:
        pc.inference.verify_folder(arguments.out)
        pc.inference.verify_device(arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    try:
        with closing(gymnasium.make(arguments.task)) as env:
            seen, acted = env.observation_space, env.action_space
    except (gymnasium.error.Error, ImportError) as error:
        raise SystemExit(f"--task {arguments.task}: {error}") from error
    if not (isinstance(acted, gymnasium.spaces.Box) and acted.is_bounded() and len(acted.shape) == 1):
        raise SystemExit(f"--task {arguments.task} has actions {acted}, not a bounded Box of one row")
    if not (isinstance(seen, gymnasium.spaces.Box) and len(seen.shape) == 1):
        raise SystemExit(f"--task {arguments.task} has observations {seen}, not a Box of one row")
    try:
        check_box(acted, acted.shape[0])
        if arguments.learner in BASELINES:
            importlib.import_module("stable_baselines3")
        else:
            make_learner(arguments, 0, seen.shape[0], acted.shape[0])
    except (TypeError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error


# -- latent space policies --------------------------------------------------------------------------------------------


def make_policy(arguments: Arguments, observations: int, actions: int, *, lowest: bool) -> Any:
    """Return the policy of a level: the lowest acts within (-1, 1), the others on latents."""
    match arguments.guide:
        case "flow" | "flow-paper":
            make = pc.guides.FlowPolicy if arguments.guide == "flow" else pc.guides.FlowPolicy.paper
            return make(observations, actions, couplings=arguments.couplings, squash=lowest)
        case "spline":
            return pc.guides.ZukoPolicy(observations, actions, squash=lowest)
        case "gaussian":
            return pc.guides.GaussianPolicy(observations, actions, squash=lowest)
        case "mixture":
            return pc.guides.MixturePolicy(observations, actions, components=arguments.components, squash=lowest)


Learnt = tuple[list[tuple[int, float]], Any, float]
"""The evaluations (step, return), the policy, and the seconds of learning, evaluations left out."""


def make_learner(arguments: Arguments, level: int, observations: int, actions: int) -> Any:
    """Return the learner of a level."""
    policy = make_policy(arguments, observations, actions, lowest=level == 0)
    scale = 1.0
    if arguments.temperature == "fixed" or arguments.learner in FIXED:
        scales = SQL_SCALES if arguments.learner == "sql" else REWARD_SCALES
        scale = scales.get(arguments.task.split("-")[0], 1.0)
    common: dict[str, Any] = dict(
        prior=None if level == 0 else pc.models.GaussianPrior(actions),
        lr=arguments.lr,
        reward_scale=scale,
        capture=arguments.capture and not together(arguments),
    )
    if arguments.learner == "sql":
        return pc.inference.SoftQLearning(policy, observations, actions, **common)
    if arguments.learner == "sac-first":
        return pc.inference.FirstSoftActorCritic(
            policy, observations, actions, draws=arguments.particles or 1, **common
        )
    pathwise = arguments.gradient == "pathwise" or (arguments.gradient is None and policy.has_rsample)
    estimator = pc.inference.Pathwise if pathwise else pc.inference.Score
    gradient = estimator() if arguments.particles is None else estimator(arguments.particles)
    temperature: Any = 1.0 if arguments.temperature == "fixed" else "learned"
    return pc.inference.SoftActorCritic(
        policy, observations, actions, temperature=temperature, gradient=gradient, **common
    )


def together(arguments: Arguments) -> bool:
    """Whether the learners of all seeds are one batch."""
    return len(arguments.seed) > 1 or arguments.compile


def latent_space_policies(arguments: Arguments) -> list[Learnt] | None:
    """Learn all levels, for every seed; None if the run was stopped."""
    each = [arguments.steps // arguments.levels] * arguments.levels
    each[-1] += arguments.steps - sum(each)

    def evaluate(policies: list[Any]) -> Any:
        def make_env() -> Any:
            env = gymnasium.make(arguments.task)
            for policy in policies[:-1]:
                env = pc.envs.LatentActionEnv(env, policy)
            return env

        return pc.inference.evaluation(policies[-1], make_env, episodes=arguments.episodes)

    make_envs = [lambda: gymnasium.make(arguments.task)] * arguments.levels
    common: dict[str, Any] = dict(
        embed=pc.envs.LatentActionEnv,
        evaluate=evaluate,
        device=arguments.device,
        evaluate_every=arguments.evaluate_every,
        start=arguments.start,
    )
    if together(arguments):
        batch = partial(pc.inference.SeedBatch, compile=arguments.compile, capture=arguments.capture)
        common |= {
            "seeds": arguments.seed,
            "batch": batch,
            "outs": [folder(arguments, seed) for seed in arguments.seed],
        }
        results = pc.inference.train_stagewise_together(make_envs, partial(make_learner, arguments), each, **common)
    else:
        common |= {"seed": arguments.seed[0], "out": arguments.out}
        results = [pc.inference.train_stagewise(make_envs, partial(make_learner, arguments), each, **common)]
    if any(result.interrupted for result in results):
        return None
    box: Any = gymnasium.make(arguments.task).action_space
    learnt = []
    for seed, result in zip(arguments.seed, results, strict=True):
        curve, before = [], 0
        for steps, part in zip(each, result.results, strict=True):
            curve += [(before + step, values["return"]) for step, values in part.evaluations]
            before += steps
        hierarchy = pc.envs.Hierarchy(result.policies, action_space=box).cpu()
        hierarchy.save(folder(arguments, seed) / "hierarchy.pt")
        learnt.append((curve, hierarchy, sum(part.seconds for part in result.results)))
    return learnt


def folder(arguments: Arguments, seed: int) -> Path:
    """Return where a seed's results go."""
    return arguments.out if len(arguments.seed) == 1 else arguments.out / f"seed-{seed}"


# -- what it is compared with -----------------------------------------------------------------------------------------


def baseline(arguments: Arguments) -> Learnt:
    """Learn with stable-baselines3, PPO as it is there, DDPG with the others' sizes; evaluate without noise."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import EventCallback
    from stable_baselines3.common.noise import NormalActionNoise

    env = gymnasium.make(arguments.task)
    size = env.action_space.shape[0]  # type: ignore[index]
    given: dict[str, Any] = {"seed": arguments.seed[0], "device": arguments.device}
    model: Any
    if arguments.learner == "ddpg":
        given |= {"action_noise": NormalActionNoise(np.zeros(size), np.full(size, 0.1)), "batch_size": 128}
        # As much replay as there, but no more than is filled: all of it is written to a checkpoint.
        given |= {"policy_kwargs": {"net_arch": [128, 128]}, "buffer_size": min(1_000_000, arguments.steps)}
        model = sb3.DDPG("MlpPolicy", env, **given)
    else:
        model = sb3.PPO("MlpPolicy", env, **given)
    kept = Kept(arguments.out)
    model = kept.gone_on_from(model, arguments.seed[0])
    start = time.perf_counter() - kept.seconds

    def evaluate() -> None:
        nonlocal start
        before = time.perf_counter()
        # PPO ends with a whole rollout.
        kept.curve.append((model.num_timesteps, mode_return(arguments, model)))
        start += time.perf_counter() - before

    class Evaluated(EventCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % arguments.evaluate_every == 0 and self.num_timesteps < arguments.steps:
                evaluate()
            return True

        def _on_rollout_start(self) -> None:  # all steps so far have been learnt from
            if len(kept.curve) > kept.saved:
                kept.save(model, time.perf_counter() - start)

    if model.num_timesteps < arguments.steps:
        model.learn(arguments.steps - model.num_timesteps, callback=Evaluated(), reset_num_timesteps=False)
        evaluate()
        kept.save(model, time.perf_counter() - start, ended=True)
    return kept.curve, model, kept.seconds


class Kept:
    """What a run of stable-baselines3 goes on from: OUT/checkpoint-STEP, as the last evaluation left it.

    Args:
        out: the run's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.seconds = out, 0.0
        self.curve: list[tuple[int, float]] = []
        self.saved = 0  # so many evaluations
        self.folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))

    def gone_on_from(self, model: Any, seed: int) -> Any:
        """Return what was kept of a model, or the model itself."""
        if not self.folders:
            return model
        folder = self.folders[-1]
        state = json.loads((folder / "state.json").read_text())
        self.curve, self.seconds = [(step, value) for step, value in state["curve"]], state["seconds"]
        self.saved = len(self.curve)
        loaded = type(model).load(folder / "model.zip", env=model.get_env(), device=model.device)
        if (folder / "replay.pkl").exists():
            loaded.load_replay_buffer(folder / "replay.pkl")
        loaded.set_random_seed((seed + loaded.num_timesteps) % 2**32)  # not the numbers of the beginning again
        return loaded

    def save(self, model: Any, seconds: float, ended: bool = False) -> None:
        """Keep a model, with its replay unless it has ended, in the place of what was kept before."""
        part = self.out / "checkpoint.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        model.save(part / "model.zip")
        if hasattr(model, "save_replay_buffer") and not ended:
            model.save_replay_buffer(part / "replay.pkl")
        (part / "state.json").write_text(json.dumps({"curve": self.curve, "seconds": seconds}))
        folder = part.rename(self.out / f"checkpoint-{model.num_timesteps}")
        for old in self.folders:
            shutil.rmtree(old)
        self.folders, self.saved, self.seconds = [folder], len(self.curve), seconds


# -- what came out ----------------------------------------------------------------------------------------------------


def mode_return(arguments: Arguments, policy: Any) -> float:
    """Return the mean return without noise."""
    with closing(gymnasium.make(arguments.task)) as env:
        found = pc.envs.evaluate_policy(env, policy, arguments.episodes, seed=EVALUATION_SEED)
    return float(np.mean(found["return"]))


def film(arguments: Arguments, seed: int, policy: Any) -> bool:
    """Film the first steps of an episode; where nothing can be rendered, say so and return False."""
    try:
        with closing(gymnasium.make(arguments.task)) as env:
            # Gymnasium's bodies run out of the picture unless the camera goes with them.
            camera: dict[str, Any] = {"camera_name": "track"} if hasattr(env.unwrapped, "mujoco_renderer") else {}
        with closing(gymnasium.make(arguments.task, render_mode="rgb_array", **camera)) as env:
            acting = pc.models.Episodes(env, policy, deterministic=True, max_steps=FILM_STEPS)
            acting.begin(seed=seed)
            frames: list[Any] = [env.render(), *(env.render() for _ in acting)]
            rate = min(50, math.ceil(env.metadata.get("render_fps", 30) / 2))
        pc.envs.save_video(folder(arguments, seed) / "policy.gif", frames[::2], fps=rate)
    except Exception as error:  # a machine without OpenGL is no reason to lose a run
        print(f"no film: {error or type(error).__name__}")
        return False
    return True


if __name__ == "__main__":
    main(tyro.cli(Arguments))
