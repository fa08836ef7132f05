"""Kick + spin + jump = spin kick: skills whose embeddings add up, learnt from the sub-skills alone.

After "Complex Skill Acquisition through Simple Skill Imitation Learning": a trajectory CVAE is trained on
demonstrations of sub-skills, with a term for the mutual information between the sum of their embeddings and the
trajectory that it generates. Composites are never trained on. What their demonstrations are for: how far is what the
sum generates from them?

    python examples/skills_humanoid.py --composite toy --mi tied --out out/skills_toy
    python examples/skills_humanoid.py --composite spinkick --mi variational --demos out/spinkick.npz

writes OUT/result.json, OUT/checkpoint.pt, OUT/skills.pt (the model, its embeddings settled: `pyrocontrol.load` it, and
`compose`), OUT/learning_curve.png, OUT/mse.png (the errors against the updates),
OUT/embeddings.png (the latent map), OUT/interpolation.png (what is generated between two sub-skills), OUT/links.png and
OUT/generation.png (generated states beside a demonstration), and OUT/generation.gif: a demonstration, what the sum
generates, the teacher and the policy in the simulator. The toy, a point whose skills add up exactly, trains in two
minutes.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import pyro
import torch
import tyro

import plots
import pyrocontrol as pc
from pyrocontrol._files import writing
from pyrocontrol.envs import point_skills
from pyrocontrol.envs.acting.video import save_video
from pyrocontrol.inference.imitation.skill_measures import SkillMeasures, play_cycle

# Demonstrations of a skill: to train on, held out, and of the composite. The same for every seed.
TRAIN, HELD_OUT, COMPOSITE = 20, 5, 5
GUIDES: dict[str, dict[str, Any]] = {
    "bilstm": {"encoder": "bilstm"},
    "transformer": {"encoder": "transformer"},
    "mean": {"encoder": "mlp", "pooling": "mean"},
}
# Tuples of demonstrations that the mutual information is estimated from.
TUPLES = 8
# Greatest norm of the gradient.
CLIP = 10.0
# Functions of time that gains are made of.
BASIS = 24
LATENT = {"toy": 8, "humanoid": 16}


@dataclass
class Arguments:
    """Learn skill embeddings from demonstrations of sub-skills."""

    composite: str = "toy"
    """what the sub-skills should add up to: toy, of a point; of the humanoid (needs pybullet) spinkick or backflip, or
    clips with plus signs between them, such as kick+spin: the sum of the clips, the root held"""
    joints: bool = False
    """the humanoid without physics, angles of joints alone"""
    rotations: Literal["vectors", "quaternions"] = "vectors"
    """of the humanoid with physics: what stands for rotations and targets"""
    mi: Literal["off", "variational", "nonvariational", "literal", "tied", "infonce"] = "tied"
    """the estimate of the mutual information; off: none, the unregularised objective"""
    weight: float = 0.1
    """of the mutual information, in nats a demonstration"""
    seed: int = 0
    """of the initial weights and the batches"""
    updates: int = 1_500
    """batches"""
    batch_size: int = 16
    """demonstrations in a batch"""
    latent: int | None = None
    """numbers of an embedding; by default 8 for the toy, 16 for the humanoid"""
    axis: Literal["additive", "time", "components", "mlp"] = "additive"
    """the dynamics: additive, whose embeddings add; what a WaveNet runs along, components being the paper's, and slow;
    mlp: no WaveNet, but an MLP"""
    base: Literal["apart", "linear", "wavenet"] = "apart"
    """of additive dynamics: what they know of the states before"""
    gains: Literal["time", "state"] = "time"
    """of additive dynamics: what the effect of an embedding depends on"""
    origin: bool = True
    """show doing nothing, too, whose embedding is 0, and name the skills"""
    learning_rate: float = 3e-3
    """of Adam"""
    residual: bool = False
    """let the dynamics predict the change of the state"""
    guide: Literal["bilstm", "transformer", "mean"] = "bilstm"
    """what the posterior reads trajectories with"""
    beta: float = 1.0
    """weight of the KL divergence"""
    warmup: int = 0
    """updates in which that weight grows from 0"""
    free_bits: float = 0.0
    """nats of every latent dimension that cost nothing"""
    evaluate_every: int = 100
    """updates between evaluations"""
    device: str = "cpu"
    """where to train"""
    demos: Path | None = None
    """a file for the demonstrations: read if it is there, written otherwise"""
    out: Path = Path("out/skills")
    """folder for results; a run that was stopped goes on from its checkpoint"""


class Task(NamedTuple):
    """A composite: its sub-skills, what doing nothing is called, and who shows them where.

    Attributes:
        composite: its name.
        skills: those it is made of.
        idle: the name of doing nothing.
        show: records demonstrations.
        teacher: shows the composite in ``stage``.
        stage: the environment.
        env: the environment in the model's coordinates.
        assisted: those that are shown by a body whose root is held.
        shown_as: the states that are compared and drawn, of the model's.
    """

    composite: str
    skills: tuple[str, ...]
    idle: str
    show: Callable[..., pc.envs.Demonstrations]
    teacher: Callable[[str], Any]
    stage: Callable[..., gymnasium.Env[Any, Any]]
    env: Callable[..., gymnasium.Env[Any, Any]]
    assisted: tuple[str, ...] = ()
    shown_as: Callable[[Any], Any] | None = None


class Data(NamedTuple):
    """Demonstrations of sub-skills and the origin to train on, others of the sub-skills, and those of the composite."""

    train: Any
    held_out: Any
    composite: Any


def main(arguments: Arguments) -> None:
    """Train on the sub-skills, evaluate on the composite, draw."""
    task = checked(arguments)
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    pyro.enable_validation(False)
    start = time.perf_counter()
    data = demonstrations(arguments, task)
    skills, guide, mi, svi = build(arguments, task, data)
    measures = SkillMeasures(
        skills, guide, subskills=task.skills, names=task.skills, shown_as=task.shown_as, **data._asdict()
    )
    try:
        result = pc.inference.fit(
            svi,
            data.train,
            steps=arguments.updates,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            out=arguments.out,
            device=arguments.device,
            clip=CLIP,
            evaluate=measures,
            evaluate_every=arguments.evaluate_every,
        )
    except ValueError as error:  # most of all, OUT holds the checkpoint of another run
        raise SystemExit(f"--out {arguments.out}: {error}") from error
    if result.interrupted:
        print(f"stopped after {result.step} updates; the same command goes on from there")
        return
    for module in (skills, guide, mi):
        module.cpu()
    if arguments.origin:
        skills.settle(measures.encoded(data.train), data.train.task)
    skills.save(arguments.out / "skills.pt")
    rows = rows_of(arguments, task, measures, mi, result)
    pc.inference.write_results(arguments.out / "result.json", "skills", rows)
    draw(arguments, task, measures, result)
    for item in rows:
        setting = item["setting"]
        if setting.get("step", result.step) == result.step:
            kind = setting.get("embedding") or setting.get("estimate", "")
            print(f"{item['method']:>15} {item['metric']:>18} {kind:>14} {item['value']:10.4f}")
    print(f"done in {time.perf_counter() - start:.0f} s; results in {arguments.out}")


def checked(arguments: Arguments) -> Task:
    """Fill in the defaults and return the task, or exit with one line that says what is wrong."""
    if arguments.latent is None:
        arguments.latent = LATENT["toy" if arguments.composite == "toy" else "humanoid"]
    if not 0 < arguments.learning_rate < math.inf:
        raise SystemExit(f"--learning-rate must be positive and finite, got {arguments.learning_rate}")
    least = {"updates": 1, "batch_size": 1, "latent": 1, "evaluate_every": 1, "seed": 0, "warmup": 0}
    least |= {"weight": 0, "beta": 0, "free_bits": 0}
    for name, number in least.items():
        if not number <= getattr(arguments, name) < math.inf:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {number}, got {getattr(arguments, name)}")
    if arguments.residual and arguments.axis != "time":
        raise SystemExit("--residual is for --axis time")
    if (arguments.base, arguments.gains) != ("apart", "time") and arguments.axis != "additive":
        raise SystemExit("--base and --gains are for --axis additive")
    if arguments.demos is not None and arguments.demos.is_dir():
        raise SystemExit(f"--demos {arguments.demos} is a folder, not a file")
    try:
        pc.inference.verify_folder(arguments.out)
        pc.inference.verify_folder(None if arguments.demos is None else arguments.demos.parent)
        pc.inference.verify_device(arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    task = task_of(arguments.composite, arguments.joints, arguments.rotations)
    if arguments.batch_size > (most := TRAIN * (len(task.skills) + arguments.origin)):
        raise SystemExit(f"--batch-size {arguments.batch_size} exceeds the {most} demonstrations")
    try:
        task.env().close()
    except (ModuleNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    return task


def task_of(composite: str, joints: bool = False, rotations: str = "vectors") -> Task:
    """Return what a composite is made of, who shows it, and where."""
    make: Callable[..., Any] = functools.partial(gymnasium.make, disable_env_checker=True)
    if composite == "toy":
        env = functools.partial(make, "pyrocontrol/PointSkills-v0", skill=composite)
        parts = point_skills.COMPOSITES[composite]
        show: Any = point_skills.demonstrations
        return Task(composite, parts, point_skills.REST, show, point_skills.PointTeacher, env, env)
    from pyrocontrol.envs.humanoid import demonstrations, experts, tangent
    from pyrocontrol.envs.humanoid import joints as bare
    from pyrocontrol.envs.humanoid.motion import STAND

    try:
        parts = experts.parts_of(composite)
    except ValueError as error:
        raise SystemExit(f"--composite {composite}: {error}") from error
    if len(set(parts)) < max(len(parts), 2):
        raise SystemExit(
            f"--composite {composite}: there are toy, {', '.join(experts.COMPOSITES)}, and sums such as kick+spin, "
            "of skills each once"
        )
    if joints:
        env = functools.partial(make, "pyrocontrol/HumanoidJoints-v0", motion=composite)
        return Task(composite, parts, STAND, bare.demonstrations, bare.JointsTeacher, env, env)
    assisted = tuple(name for name in (*parts, STAND, composite) if name not in experts.EXPERT_SKILLS)
    teacher: Any = experts.AssistedPlayback if composite in assisted else experts.DeepMimicExpert
    stage = functools.partial(make, "pyrocontrol/DeepMimic-v0", motion=composite, assisted=composite in assisted)
    show = demonstrations.demonstrations
    if rotations == "quaternions":
        return Task(composite, parts, STAND, show, teacher, stage, stage, assisted)

    def converted(*given: Any, **options: Any) -> pc.envs.Demonstrations:
        return tangent.in_rotation_vectors(show(*given, **options))

    def env_of(**options: Any) -> Any:
        return tangent.RotationVectors(stage(**options))

    return Task(composite, parts, STAND, converted, teacher, stage, env_of, assisted, tangent.as_quaternions)


def demonstrations(arguments: Arguments, task: Task) -> Data:
    """Return the demonstrations, from a file if there is one; the noise of the three sets is apart."""
    groups = (((*task.skills, task.idle), TRAIN), (task.skills, HELD_OUT), ((task.composite,), COMPOSITE))
    sizes = [len(kinds) * count for kinds, count in groups]
    shows = [*task.skills, task.idle, task.composite]
    records: dict[str, Any] = {"names": shows, "sizes": sizes, "assisted": list(task.assisted)}
    records |= {"joints": arguments.joints, "rotations": arguments.rotations}
    path = arguments.demos
    if path is not None and path.exists():
        beside = path.with_suffix(".json")
        try:
            shown = pc.envs.Demonstrations.load(path)
            found = json.loads(beside.read_text()) if beside.exists() else None
        except (OSError, ValueError) as error:
            raise SystemExit(f"--demos {path} cannot be read: {error}") from error
        if found != records | {"fingerprint": shown.fingerprint()}:
            raise SystemExit(f"--demos {path} does not hold the demonstrations of {', '.join(shows)}: see {beside}")
    else:
        sets = [task.show(kinds, count, seed=seed, names=task.skills) for seed, (kinds, count) in enumerate(groups)]
        episodes = [episode for each in sets for episode in each.to_episodes()]
        spaces = sets[0].action_space, sets[0].observation_space
        shown = pc.envs.Demonstrations.from_episodes(episodes, *spaces)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What they are comes first: no file of demonstrations is there that does not say which ones are assisted.
            with writing(path.with_suffix(".json")) as file:
                file.write(json.dumps(records | {"fingerprint": shown.fingerprint()}, indent=1).encode())
            shown.save(path)
    shown = shown.to(dtype=torch.float32)
    train, held_out, composite = (shown[rows] for rows in torch.arange(len(shown)).split(sizes))
    return Data(train if arguments.origin else train[: TRAIN * len(task.skills)], held_out, composite)


def build(arguments: Arguments, task: Task, data: Data) -> tuple[Any, Any, Any, Any]:
    """Return the model, its guide, the regularised model, and what trains them."""
    small = task.composite == "toy"
    spaces = data.train.observation_space, data.train.action_space
    latent = arguments.latent or 1
    size = pc.models.observation_size(spaces[0])
    axis: Any = arguments.axis
    if axis == "additive":
        steps = data.train.observations.shape[1]
        given: dict[str, Any] = {"base": arguments.base, "gains": arguments.gains, "horizon": steps, "basis": BASIS}
        axis = pc.models.AdditiveDynamics(size, latent, size=32 if small else 64, **given)
    elif small and axis == "time":
        axis = pc.models.WaveNetDynamics(
            size, latent, channels=32, features=64, dilations=(1, 2, 4, 8, 16), residual=arguments.residual
        )
    elif axis == "time":
        axis = pc.models.WaveNetDynamics(size, latent, residual=arguments.residual)
    elif axis == "mlp":
        axis = pc.models.MLPDynamics(size, latent, hidden=(64, 64) if small else (256, 256))
    hidden = None if arguments.axis == "additive" else (64, 64) if small else (256, 256)
    names = task.skills if arguments.origin else ()
    skills = pc.models.TrajectoryCVAE(*spaces, latent=latent, hidden=hidden, axis=axis, names=names)
    skills.normalize(data.train)
    guide = pc.guides.TrajectoryGuide(skills, **GUIDES[arguments.guide], encoder_size=32 if small else 64)
    mi = pc.inference.MutualInformation(
        skills,
        guide,
        data.train,
        task.skills,
        names=task.skills,
        kind=arguments.mi,
        weight=arguments.weight,
        tuples=2 if arguments.mi == "infonce" else TUPLES,  # each with many rollouts, and all pairs of them
    )
    given = {"beta": arguments.beta, "warmup": arguments.warmup, "free_bits": arguments.free_bits}
    elbo = pc.inference.KLWeight("z", pc.inference.StepwiseKL_ELBO(), **given)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": arguments.learning_rate})
    return skills, guide, mi, pyro.infer.SVI(mi.model, guide, optimizer, elbo)


def rows_of(arguments: Arguments, task: Task, measures: SkillMeasures, mi: Any, result: Any) -> list[dict[str, Any]]:
    """Return the rows of the results; what `embedding` stands for, `SkillMeasures` says."""
    names = "joints rotations weight updates batch_size latent axis base gains origin learning_rate residual guide beta"
    setting: dict[str, Any] = {"assisted": "+".join(task.assisted)}
    setting |= {
        name: getattr(arguments, name)
        for name in [*names.split(), "warmup", "free_bits"]
        if (name, arguments.mi) != ("weight", "off")
    }

    def line(metric: str, value: float, method: str = arguments.mi, **more: Any) -> dict[str, Any]:
        given = {"seed": arguments.seed, "seconds": result.seconds, **setting, **more}
        return pc.inference.row(method, arguments.composite, metric, value, **given)

    rows = [
        line(key.split("/")[0], value, step=step, embedding=key.split("/")[1])
        for step, values in result.evaluations
        for key, value in values.items()
    ]
    for key, value in measures.mean_state().items():
        rows.append(line(key.split("/")[0], value, "mean-state", embedding=key.split("/")[1]))
    skills: Any = measures.skills
    # All rows of the sum are the same embedding.
    policies = {kind: [skills.acting(row) for row in z.unique(dim=0)] for kind, z in measures.embeddings().items()}
    env, stage = task.env(), task.stage()
    for kind, several in {"teacher": [task.teacher(task.composite)], **policies}.items():
        cycles = [play_cycle(stage if kind == "teacher" else env, policy) for policy in several]
        method, more = (
            ("teacher", {}) if kind == "teacher" else (arguments.mi, {"step": result.step, "embedding": kind})
        )
        for metric, values in zip(
            ("cycle_fraction", "tracking_error"), list(zip(*cycles, strict=True))[:2], strict=True
        ):
            rows.append(line(metric, sum(values) / len(values), method, **more))
    stage.close()
    env.close()
    for part, value in measures.likeness().items():
        rows.append(line("likeness_mse", value, step=result.step, embedding="sum", part=part))
    pyro.set_rng_seed(arguments.seed)
    for kind, value in mi.estimates(TUPLES).items():
        rows.append(line("mutual_information", value, step=result.step, estimate=kind))
    return rows


def draw(arguments: Arguments, task: Task, measures: SkillMeasures, result: Any) -> None:
    """Write the pictures and the film."""
    out = arguments.out
    skills: Any = measures.skills
    kinds, parts = measures.embeddings(), measures.parts()
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, values in result.evaluations:
        for key, value in values.items():
            metric, kind = key.split("/")
            curves.setdefault(metric, {}).setdefault(kind, []).append((step, value))
    chosen = ["state_mse", "embedding_mse", "dynamics_nats"]
    base = measures.mean_state()
    lines = {
        "state_mse": {"mean state, of the composite": base["state_mse/composite"]},
        "dynamics_nats": {"mean state": base["dynamics_nats/own"]},
    }
    plots.plot_curves(out / "mse.png", {metric: curves[metric] for metric in chosen}, lines)
    plots.plot_curves(out / "learning_curve.png", {"loss of a batch (nats)": {"training": result.losses}})
    plots.plot_embeddings(
        out / "embeddings.png",
        {name: z.numpy() for name, z in parts.items()},
        composite=kinds["encoded"].numpy(),
        sum_of_parts=kinds["sum"][0].numpy(),
        name=task.composite,
    )
    demonstration = measures.composite.observations[0, : int(measures.composite.lengths[0])]
    first, steps = demonstration[0], len(demonstration) - 1
    env, stage = task.env(render_mode="rgb_array"), task.stage(render_mode="rgb_array")
    drawn_as: Callable[[Any], Any] = env.unwrapped.full if arguments.joints else np.asarray  # type: ignore[attr-defined]

    def made(z: torch.Tensor) -> Any:
        return skills.generate(z, first, steps).numpy()

    (one, here), (other, there), *_ = parts.items()
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    between = [torch.lerp(here.mean(0), there.mean(0), share) for share in shares]
    titles = [f"{1 - share:.2f} {one} + {share:.2f} {other}" for share in shares]
    strip = {title: drawn_as(made(z)) for title, z in zip(titles, between, strict=True)}
    plots.plot_bodies(out / "interpolation.png", strip)
    # Other decoders do not add: how far they are from it is what is compared.
    summed = skills.compose(dict.fromkeys(parts, 1.0), anyway=True) if arguments.origin else kinds["sum"][0]
    shown = {"demonstrated": demonstration.numpy(), "sum": made(summed), "own embedding": made(kinds["encoded"][0])}
    shown |= {name: made(z.mean(0)) for name, z in parts.items()}
    shown |= {"nothing": made(torch.zeros_like(summed))} if arguments.origin else {}
    bodies = {title: drawn_as(states) for title, states in shown.items()}
    plots.plot_bodies(out / "generation.png", bodies, columns=task.composite == "toy")
    plots.plot_links(out / "links.png", bodies["demonstrated"], bodies["sum"])
    played = [
        play_cycle(*each).frames for each in ((stage, task.teacher(task.composite)), (env, skills.acting(summed)))
    ]
    env.close()
    stage.close()
    titles = ["demonstrated", "sum", *parts]
    drawn = [plots.state_frames(bodies[title], size=played[0][0].shape[:2]) for title in titles]
    film = plots.side_by_side(*drawn, *played, titles=[*titles, "teacher", "policy (sum)"])
    save_video(out / "generation.gif", film, fps=30)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
