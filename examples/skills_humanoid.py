"""Kick + spin + jump = spin kick: skills whose embeddings add up, learnt from the sub-skills alone.

After "Complex Skill Acquisition through Simple Skill Imitation Learning": a trajectory CVAE is trained on
demonstrations of sub-skills, with a term for the mutual information between the sum of their embeddings and the
trajectory that it generates. Composites are never trained on. What their demonstrations are for: how far is what the
sum generates from them?

    python examples/skills_humanoid.py --composite toy --mi tied --out out/skills_toy
    python examples/skills_humanoid.py --composite spinkick --mi variational --demos out/spinkick.npz

writes OUT/result.json, OUT/checkpoint.pt, OUT/learning_curve.png, OUT/mse.png (the errors against the updates),
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
LATENT = {"toy": 8, "humanoid": 16}


@dataclass
class Arguments:
    """Learn skill embeddings from demonstrations of sub-skills."""

    composite: Literal["spinkick", "backflip", "toy"] = "toy"
    """what the sub-skills should add up to: of the humanoid (needs pybullet), or of a point"""
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
    axis: Literal["time", "components", "mlp"] = "time"
    """what the WaveNet of the dynamics runs along; components is the paper's, and slow; mlp: no WaveNet, but an MLP"""
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
    """A composite: its sub-skills, which of them are shown by a body whose root is held, who shows them and where."""

    composite: str
    skills: tuple[str, ...]
    assisted: tuple[str, ...]
    show: Callable[..., pc.envs.Demonstrations]
    teacher: Callable[[str], Any]
    env: Callable[..., gymnasium.Env[Any, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers of a demonstration's task stand for."""
        return (*self.skills, self.composite)


class Data(NamedTuple):
    """Demonstrations of the sub-skills to train on, others of them, and those of the composite."""

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
    measures = SkillMeasures(skills, guide, subskills=task.skills, names=task.names, **data._asdict())
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
    rows = rows_of(arguments, task, measures, mi, result)
    pc.inference.write_results(arguments.out / "result.json", "skills", rows)
    draw(arguments.out, task, measures, result)
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
    least = {"updates": 1, "batch_size": 1, "latent": 1, "evaluate_every": 1, "seed": 0, "warmup": 0}
    least |= {"weight": 0, "beta": 0, "free_bits": 0}
    for name, number in least.items():
        if not number <= getattr(arguments, name) < math.inf:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {number}, got {getattr(arguments, name)}")
    if arguments.residual and arguments.axis != "time":
        raise SystemExit("--residual is for --axis time")
    if arguments.demos is not None and arguments.demos.is_dir():
        raise SystemExit(f"--demos {arguments.demos} is a folder, not a file")
    try:
        pc.inference.verify_folder(arguments.out)
        pc.inference.verify_folder(None if arguments.demos is None else arguments.demos.parent)
        pc.inference.verify_device(arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    task = task_of(arguments.composite)
    if arguments.batch_size > TRAIN * len(task.skills):
        raise SystemExit(f"--batch-size {arguments.batch_size} exceeds the {TRAIN * len(task.skills)} demonstrations")
    try:
        task.env().close()
    except ModuleNotFoundError as error:
        raise SystemExit(str(error)) from error
    return task


def task_of(composite: str) -> Task:
    """Return what a composite is made of, who shows it, and where."""
    room: Any = point_skills
    show: Any = point_skills.demonstrations
    teacher: Any = point_skills.PointTeacher
    name, skill = "pyrocontrol/PointSkills-v0", "skill"
    if composite != "toy":
        from pyrocontrol.envs.humanoid import experts as room
        from pyrocontrol.envs.humanoid.demonstrations import demonstrations as show

        name, skill, teacher = "pyrocontrol/DeepMimic-v0", "motion", room.DeepMimicExpert
    make: Callable[..., Any] = gymnasium.make
    make = functools.partial(make, name, **{skill: composite})
    skills = room.COMPOSITES[composite]
    assisted = () if composite == "toy" else tuple(name for name in skills if name not in room.EXPERT_SKILLS)
    return Task(composite, skills, assisted, show, teacher, make)


def demonstrations(arguments: Arguments, task: Task) -> Data:
    """Return the demonstrations, from a file if there is one; the noise of the three sets is apart."""
    sizes = [TRAIN * len(task.skills), HELD_OUT * len(task.skills), COMPOSITE]
    records: dict[str, Any] = {"names": list(task.names), "sizes": sizes, "assisted": list(task.assisted)}
    path = arguments.demos
    if path is not None and path.exists():
        beside = path.with_suffix(".json")
        try:
            shown = pc.envs.Demonstrations.load(path)
            found = json.loads(beside.read_text()) if beside.exists() else None
        except (OSError, ValueError) as error:
            raise SystemExit(f"--demos {path} cannot be read: {error}") from error
        if found != records | {"fingerprint": shown.fingerprint()}:
            raise SystemExit(
                f"--demos {path} does not hold the demonstrations of {', '.join(task.names)}: see {beside}"
            )
    else:
        groups = ((task.skills, TRAIN), (task.skills, HELD_OUT), ((task.composite,), COMPOSITE))
        sets = [task.show(kinds, count, seed=seed, names=task.names) for seed, (kinds, count) in enumerate(groups)]
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
    return Data(*(shown[rows] for rows in torch.arange(len(shown)).split(sizes)))


def build(arguments: Arguments, task: Task, data: Data) -> tuple[Any, Any, Any, Any]:
    """Return the model, its guide, the regularised model, and what trains them."""
    small = task.composite == "toy"
    spaces = data.train.observation_space, data.train.action_space
    latent = arguments.latent or 1
    size = pc.models.observation_size(spaces[0])
    axis: Any = arguments.axis
    if small and axis == "time":
        axis = pc.models.WaveNetDynamics(
            size, latent, channels=32, features=64, dilations=(1, 2, 4, 8, 16), residual=arguments.residual
        )
    elif axis == "time":
        axis = pc.models.WaveNetDynamics(size, latent, residual=arguments.residual)
    elif axis == "mlp":
        axis = pc.models.MLPDynamics(size, latent, hidden=(64, 64) if small else (256, 256))
    skills = pc.models.TrajectoryCVAE(*spaces, latent=latent, hidden=(64, 64) if small else (256, 256), axis=axis)
    skills.normalize(data.train)
    guide = pc.guides.TrajectoryGuide(skills, **GUIDES[arguments.guide], encoder_size=32 if small else 64)
    mi = pc.inference.MutualInformation(
        skills,
        guide,
        data.train,
        task.skills,
        names=task.names,
        kind=arguments.mi,
        weight=arguments.weight,
        tuples=2 if arguments.mi == "infonce" else TUPLES,  # each with many rollouts, and all pairs of them
    )
    given: dict[str, Any] = {"beta": arguments.beta, "warmup": arguments.warmup, "free_bits": arguments.free_bits}
    elbo = pc.inference.KLWeight("z", pc.inference.StepwiseKL_ELBO(), **given)
    optimizer = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3})
    return skills, guide, mi, pyro.infer.SVI(mi.model, guide, optimizer, elbo)


def rows_of(arguments: Arguments, task: Task, measures: SkillMeasures, mi: Any, result: Any) -> list[dict[str, Any]]:
    """Return the rows of the results; what `embedding` stands for, `SkillMeasures` says."""
    names = ("weight", "updates", "batch_size", "latent", "axis", "residual", "guide", "beta", "warmup", "free_bits")
    setting: dict[str, Any] = {"assisted": "+".join(task.assisted)}
    setting |= {name: getattr(arguments, name) for name in names if (name, arguments.mi) != ("weight", "off")}

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
    env = task.env()
    for kind, several in {"teacher": [task.teacher(task.composite)], **policies}.items():
        cycles = [play_cycle(env, policy) for policy in several]
        method, more = (
            ("teacher", {}) if kind == "teacher" else (arguments.mi, {"step": result.step, "embedding": kind})
        )
        for metric, values in zip(
            ("cycle_fraction", "tracking_error"), list(zip(*cycles, strict=True))[:2], strict=True
        ):
            rows.append(line(metric, sum(values) / len(values), method, **more))
    env.close()
    for part, value in measures.likeness().items():
        rows.append(line("likeness_mse", value, step=result.step, embedding="sum", part=part))
    pyro.set_rng_seed(arguments.seed)
    for kind, value in mi.estimates(TUPLES).items():
        rows.append(line("mutual_information", value, step=result.step, estimate=kind))
    return rows


def draw(out: Path, task: Task, measures: SkillMeasures, result: Any) -> None:
    """Write the pictures and the film."""
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
    (one, here), (other, there), *_ = parts.items()
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    between = torch.stack([torch.lerp(here.mean(0), there.mean(0), share) for share in shares])
    titles = [f"{1 - share:.2f} {one} + {share:.2f} {other}" for share in shares]
    strip = skills.generate(between, first, steps).numpy()
    plots.plot_bodies(out / "interpolation.png", dict(zip(titles, strip, strict=True)))
    made = {f"generated ({kind})": skills.generate(kinds[kind][0], first, steps).numpy() for kind in ("sum", "encoded")}
    bodies = {"demonstrated": demonstration.numpy(), **made}
    plots.plot_bodies(out / "generation.png", bodies, columns=task.composite == "toy")
    plots.plot_links(out / "links.png", demonstration.numpy(), made["generated (sum)"])
    env = task.env(render_mode="rgb_array")
    actors = (task.teacher(task.composite), skills.acting(kinds["sum"][0]))
    played = [play_cycle(env, actor).frames for actor in actors]
    env.close()
    size = played[0][0].shape[:2]
    titles = ["demonstrated", "generated (sum)"]
    drawn = [plots.state_frames(bodies[title], size=size) for title in titles]
    film = plots.side_by_side(*drawn, *played, titles=[*titles, "teacher", "policy (sum)"])
    save_video(out / "generation.gif", film, fps=30)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
