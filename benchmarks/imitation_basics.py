"""Remake results/imitation_basics.json: cloning, memory, DAgger, DART and hindsight goals, and the plots beside it.

    python benchmarks/imitation_basics.py                               # everything; parts that are done are kept
    python benchmarks/imitation_basics.py --parts t_maze --seeds 0 1    # some of it
    python benchmarks/imitation_basics.py --no-run                      # collect what is done and plot

A part is one question, and runs once a seed in a process of one thread; what it finds is kept under RUNS.

    error_growth     the imitation loss against the horizon, cloning against DAgger
    collect_*        cloning, DAgger and DART at equal numbers of teacher labels: lane, cart_pole, reacher
    t_maze           a task that takes memory: reactive, recurrent, latent
    goals            hindsight goals: success against the distance of the goal
    peer             cloning by the package `imitation` (pip install --no-deps imitation seals), and its speed
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import pyro
import torch
import tyro

import pyrocontrol as pc
from pyrocontrol.inference import mean_interval, read_rows, row, select, summary, write_results
from training_runs import command_line, make

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be set first)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "imitation_basics.json"
TEST_SEED = 10_000
HORIZONS = (50, 100, 200, 400, 800)

Rows = list[dict[str, Any]]


@dataclass
class Arguments:
    """Which parts to run."""

    parts: tuple[str, ...] = (
        "t_maze",
        "error_growth",
        "peer",
        "collect_lane",
        "collect_cart_pole",
        "collect_reacher",
        "goals",
    )
    """which parts"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """trials"""
    jobs: int = 2
    """parts side by side"""
    runs: Path = HERE / "runs" / "imitation_basics"
    """where the parts' rows are kept"""
    run: bool = True
    """run the parts that are missing (else only collect and plot)"""


def main(arguments: Arguments) -> None:
    """Run the missing parts, then make the results file and its plots."""
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if arguments.run:
        # Seed by seed, so that what there is at any time is balanced.
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda job: run(arguments, *job), [(p, s) for s in arguments.seeds for p in arguments.parts]))
    found = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*.json"))}
    rows = [item for content in found.values() for item in content]
    # Parts run elsewhere, whose rows are not under RUNS, stay in the file.
    made = {(item["setting"]["part"], item["seed"]) for item in rows}
    rows += [item for item in read_rows(RESULTS) if (item["setting"]["part"], item["seed"]) not in made]
    rows.sort(
        key=lambda item: (list(PARTS).index(item["setting"]["part"]), item["task"], item["method"], item["metric"])
    )
    write_results(RESULTS, "imitation_basics", rows, command="python benchmarks/imitation_basics.py")
    plot_error_growth(rows, RESULTS.with_name("imitation_error_growth.png"))
    plot_overview(rows, RESULTS.with_suffix(".png"))
    print(table(rows))


def run(arguments: Arguments, part: str, seed: int) -> None:
    """Run one part with one seed in a process of its own unless it is done."""
    out = arguments.runs / f"{part}-{seed}.json"
    done = {(item["setting"]["part"], item["seed"]) for item in read_rows(RESULTS)}
    if out.exists() or (part, seed) in done:
        return
    given = ["--part", part, "--seed", str(seed), "--out", str(out)]
    make(HERE / "imitation_basics.py", given, out.stem, out.with_suffix(".log"))


@dataclass
class Part:
    """One part with one seed; its rows go to a file."""

    part: str
    seed: int
    out: Path

    def __call__(self) -> None:
        """Run it."""
        torch.set_num_threads(1)
        pyro.enable_validation(False)
        pyro.set_rng_seed(self.seed)
        rows = [item | {"setting": {"part": self.part} | item["setting"]} for item in PARTS[self.part](self.seed)]
        temporary = self.out.with_suffix(".part")
        temporary.write_text(json.dumps(rows, indent=1))
        temporary.replace(self.out)


# -- learning -----------------------------------------------------------------------------------------------------


def train(
    policy: Any, data: Any, seed: int, *, updates: int, batch_size: int, guide: Any = None, lr: float = 1e-3
) -> Any:
    """Return the policy after maximum likelihood, or after maximising the ELBO where there is a guide."""
    pyro.clear_param_store()
    elbo = pyro.infer.Trace_ELBO() if guide is None else pc.inference.StepwiseKL_ELBO()
    loss = elbo(policy, guide or policy.guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    size = min(batch_size, len(data))
    pc.inference.fit((loss, optimizer), data, steps=updates, batch_size=size, seed=seed, progress=False)
    return policy


def clone(demonstrations: Any, seed: int, *, updates: int = 2_000, batch_size: int = 64, **options: Any) -> Any:
    """Return a reactive policy cloned from demonstrations."""
    data = demonstrations.to(dtype=torch.float32).transitions()
    policy = pc.models.ReactivePolicy(data.observation_space, data.action_space, **options)
    policy.normalize(data)
    return train(policy, data, seed, updates=updates, batch_size=batch_size)


def cloned(demonstrations: Any, seed: int, **options: Any) -> Any:
    """`clone` from the weights that the seed gives, however often it was called before."""
    pyro.set_rng_seed(seed)
    return clone(demonstrations, seed, **options)


# -- error growth -------------------------------------------------------------------------------------------------

LABELS = 2_000  # of the teacher, for every method
EPISODE = 100  # steps of a demonstration


def error_growth(seed: int) -> Rows:
    """Imitation loss of whole episodes against their horizon, after equally many labels of the teacher."""
    rows: Rows = []
    for method in ("bc", "dagger"):
        start = time.perf_counter()
        policy, labels = lane_policy(method, seed)
        losses = lane_losses(policy, episodes=500)
        seconds = time.perf_counter() - start
        setting = {"labels": labels, "test_episodes": len(losses)}
        means = [float(losses[:, :horizon].sum(1).mean()) for horizon in HORIZONS]
        for horizon, mean in zip(HORIZONS, means, strict=True):
            rows.append(
                row(method, LANE, "imitation_loss", mean, seed=seed, seconds=seconds, horizon=horizon, **setting)
            )
        if min(means) > 0:
            rows.append(row(method, LANE, "error_exponent", slope(means), seed=seed, seconds=seconds, **setting))
    return rows


LANE = "pyrocontrol/Lane-v0"


def lane_policy(method: str, seed: int) -> tuple[Any, int]:
    """Return a policy for the lane and how many labels of the teacher it took."""
    env = gymnasium.make(LANE, horizon=EPISODE)
    teacher = pc.envs.LaneTeacher()

    def learn(demonstrations: Any) -> Any:
        return cloned(demonstrations, seed, hidden=(32, 32), head="gaussian-shared")

    if method == "bc":
        demonstrations = pc.envs.collect(env, teacher, LABELS // EPISODE, seed=seed, progress=False)
        return learn(demonstrations), LABELS
    loop = pc.inference.dagger if method == "dagger" else pc.inference.dart
    found = loop(env, teacher, learn, rounds=10, episodes=LABELS // EPISODE // 10, seed=seed, progress=False)
    return found.policy, LABELS


def lane_losses(policy: Any, episodes: int) -> np.ndarray:
    """Return the 0-1 imitation loss of every step, ``[episodes, 800]``, of a policy that acts greedily."""
    envs = gymnasium.make_vec(LANE, num_envs=episodes, vectorization_mode="sync", horizon=max(HORIZONS))
    observation, _ = envs.reset(seed=TEST_SEED)
    losses = []
    for _ in range(max(HORIZONS)):
        action, _ = policy.predict(observation, deterministic=True)
        observation, _, _, _, info = envs.step(action)
        losses.append(info["imitation_loss"])
    return np.stack(losses, 1)


def slope(means: list[float]) -> float:
    """Return the exponent k of loss = c T^k, by least squares on the logarithms."""
    return float(np.polyfit(np.log(HORIZONS), np.log(means), 1)[0])


# -- data collection ----------------------------------------------------------------------------------------------


ALPHA = 0.1  # anticipated error of a step: trace of the noise's covariance, or rate of another action


def collect_lane(seed: int) -> Rows:
    """Cloning, DAgger and DART at equal numbers of labels: stay in the lane."""
    options = {"hidden": (32, 32), "head": "gaussian-shared"}
    return compare_collection(seed, LANE, lambda env: pc.envs.LaneTeacher(), 2_000, EPISODE, options)


def collect_cart_pole(seed: int) -> Rows:
    """The same: balance a pole."""
    return compare_collection(
        seed, "CartPole-v1", lambda env: pc.envs.CartPoleTeacher(), 100, 100, {"hidden": (32, 32)}
    )


def collect_reacher(seed: int) -> Rows:
    """The same: reach with an arm in MuJoCo, the teacher being a planner."""
    options = {"head": "gaussian-shared"}
    return compare_collection(seed, "Reacher-v5", lambda env: pc.envs.MPPITeacher(env, seed=seed), 1_000, 50, options)


def compare_collection(
    seed: int, task: str, teacher_of: Callable[[Any], Any], labels: int, horizon: int, options: dict[str, Any]
) -> Rows:
    """Return what policies come to that were learnt from equally many labels, collected in different ways."""

    def learn(demonstrations: Any) -> Any:
        return cloned(demonstrations, seed, **options)

    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "dagger": (pc.inference.dagger, {}),
        "dart": (pc.inference.dart, {}),  # as in the lecture: noise fitted on what the learner was trained on
        "dart-alpha": (pc.inference.dart, {"alpha": ALPHA}),  # scaled to an anticipated error, as in Laskey et al.
    }
    rows: Rows = []
    for method in ("bc", *methods):
        start = time.perf_counter()
        env = gymnasium.make(task, max_episode_steps=horizon)
        teacher = teacher_of(env)
        if method == "bc":
            policy = learn(pc.envs.collect(env, teacher, None, max_labels=labels, seed=seed, progress=False))
        else:
            loop, extra = methods[method]
            shared: dict[str, Any] = {
                "rounds": 5,
                "episodes": None,
                "max_labels": labels,
                "seed": seed,
                "progress": False,
            }
            policy = loop(env, teacher, learn, **shared, **extra).policy
        outcome = pc.envs.evaluate_policy(gymnasium.make(task), policy, 50, seed=TEST_SEED)
        seconds = time.perf_counter() - start
        for metric in ("return", "imitation_loss"):
            if metric in outcome:
                value = statistics.mean(outcome[metric])
                rows.append(row(method, task, metric, value, seed=seed, seconds=seconds, labels=labels))
    start = time.perf_counter()
    env = gymnasium.make(task)
    value = statistics.mean(pc.envs.evaluate_policy(env, teacher_of(env), 20, seed=TEST_SEED)["return"])
    rows.append(row("teacher", task, "return", value, seed=seed, seconds=time.perf_counter() - start))
    return rows


# -- memory -------------------------------------------------------------------------------------------------------


def t_maze(seed: int) -> Rows:
    """Success with and without memory; how far the ELBO of latent memory is from the exact likelihood."""
    task = "pyrocontrol/TMaze-v0"
    env = gymnasium.make(task)
    train_set = pc.envs.collect(env, pc.envs.TMazeTeacher(), 200, seed=seed, progress=False).to(dtype=torch.float32)
    test_set = pc.envs.collect(env, pc.envs.TMazeTeacher(), 200, seed=TEST_SEED, progress=False).to(dtype=torch.float32)
    spaces = train_set.observation_space, train_set.action_space
    rows: Rows = []
    for method in ("reactive", "recurrent", "latent"):
        start = time.perf_counter()
        pyro.set_rng_seed(seed)
        guide: Any = None
        if method == "reactive":
            policy: Any = pc.models.ReactivePolicy(*spaces, hidden=(32, 32))
        elif method == "recurrent":
            policy = pc.models.RecurrentPolicy(*spaces, hidden=32)
        else:
            policy = pc.models.LatentMemoryPolicy(*spaces, memory="discrete")
            guide = pc.guides.MemoryGuide(policy)
        train(policy, train_set, seed, updates=2_000, batch_size=32, guide=guide, lr=3e-3)
        outcome = pc.envs.evaluate_policy(env, policy, 500, seed=TEST_SEED)
        seconds = time.perf_counter() - start
        values = {"success": statistics.mean(outcome["success"])}
        if method == "latent":
            with torch.no_grad():
                exact = pc.inference.forward_log_likelihood(*policy.tables(test_set)).mean().item()
                bound = expected_elbo(policy, guide, test_set).mean().item()
            values |= {"log_likelihood": exact, "elbo": bound, "elbo_gap": exact - bound}
        rows += [row(method, task, metric, v, seed=seed, seconds=seconds, demos=200) for metric, v in values.items()]
    return rows


def expected_elbo(policy: Any, guide: Any, batch: Any) -> torch.Tensor:
    """Return the ELBO of every trace without sampling, ``[B]``: guide and model are Markov chains, traces as long."""
    posterior = guide.posterior(batch)
    first, transitions, emission = policy.tables(batch)
    logits = posterior.process.logits(posterior.context.features[:, :-1]).log_softmax(-1)
    marginal = logits[:, 0, -1].exp()
    total = (marginal * (first - logits[:, 0, -1] + emission[:, 0])).sum(-1)
    for t in range(1, emission.shape[1]):
        joint = marginal.unsqueeze(-1) * logits[:, t, :-1].exp()
        total = total + (joint * (transitions[:, t - 1] - logits[:, t, :-1] + emission[:, t].unsqueeze(1))).sum((1, 2))
        marginal = joint.sum(1)
    return total


# -- goals --------------------------------------------------------------------------------------------------------

DISTANCES = (0.0, 0.1, 0.2, 0.3, 0.42)  # edges, m


def goals(seed: int) -> Rows:
    """Success against the distance between fingertip and goal at the start; demonstrations are not labelled."""
    task = "pyrocontrol/ReacherGoal-v0"
    env = gymnasium.make(task)
    start = time.perf_counter()
    demonstrations = pc.envs.collect(env, pc.envs.MPPITeacher(env, seed=seed), 100, seed=seed, progress=False)
    data = pc.inference.hindsight(demonstrations.to(dtype=torch.float32), "achieved_goal", strategy="future", seed=seed)
    spaces = demonstrations.observation_space, demonstrations.action_space
    rows: Rows = []
    for method in ("gcbc", "bc"):  # bc: the same without being told
        if method == "bc":
            data = data.with_goals(torch.zeros(len(data), 2))
        pyro.set_rng_seed(seed)
        policy = pc.models.GoalConditionedPolicy(*spaces, goal_size=2, hidden=(128, 128), head="gaussian-shared")
        policy.normalize(data)
        train(policy, data, seed, updates=5_000, batch_size=256)
        found = [trial(env, policy, index, told=method == "gcbc") for index in range(200)]
        seconds = time.perf_counter() - start
        for low, high in zip(DISTANCES, DISTANCES[1:], strict=False):
            chosen = [reached for distance, reached in found if low <= distance < high]
            if chosen:
                setting = {"distance": f"{low:g} to {high:g} m", "goals": len(chosen)}
                rows.append(
                    row(method, task, "success", statistics.mean(chosen), seed=seed, seconds=seconds, **setting)
                )
        value = statistics.mean(reached for _, reached in found)
        rows.append(row(method, task, "success", value, seed=seed, seconds=seconds, goals=len(found)))
    return rows


def trial(env: Any, policy: Any, index: int, told: bool) -> tuple[float, float]:
    """Return how far a fresh goal is at first, and whether the fingertip is there at the end."""
    observation, _ = env.reset(seed=TEST_SEED + index)
    distance = float(np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]))
    ended, info = False, {}
    while not ended:
        goal = observation["desired_goal"] if told else np.zeros(2)
        action, _ = policy.predict(observation, deterministic=True, goal=goal)
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    return distance, float(info["is_success"])


# -- the peer -----------------------------------------------------------------------------------------------------


PEER_UPDATES, PEER_BLOCK = 3_000, 300


def peer(seed: int) -> Rows:
    """Cloning by `imitation` and by us: same data, same network, batches of 32, updates timed in turns."""
    try:
        from imitation.algorithms.bc import BC
        from imitation.util.logger import configure
    except ImportError as error:
        raise SystemExit("this part needs `pip install --no-deps imitation seals` and stable-baselines3") from error
    rows: Rows = []
    for task, teacher, head in (
        ("CartPole-v1", pc.envs.CartPoleTeacher(), "categorical"),
        (LANE, pc.envs.LaneTeacher(), "gaussian-shared"),
    ):
        env = gymnasium.make(task)
        demonstrations = pc.envs.collect(env, teacher, 5, seed=seed, max_steps=100, progress=False)
        demonstrations = demonstrations.to(dtype=torch.float32)
        pyro.set_rng_seed(seed)
        theirs = BC(
            observation_space=env.observation_space,
            action_space=env.action_space,
            rng=np.random.default_rng(seed),
            demonstrations=pc.envs.to_imitation(demonstrations),
            custom_logger=configure(tempfile.mkdtemp(), format_strs=[]),
            device="cpu",
        )
        data = demonstrations.transitions()
        pyro.set_rng_seed(seed)
        policy = pc.models.ReactivePolicy(
            env.observation_space, env.action_space, hidden=(32, 32), activation="tanh", head=head
        )
        elbo: Any = pyro.infer.Trace_ELBO()
        loss = elbo(policy, policy.guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        seconds: dict[str, list[float]] = {"bc": [], "imitation-bc": []}
        for done in range(0, PEER_UPDATES, PEER_BLOCK):
            start = time.perf_counter()
            theirs.train(n_batches=PEER_BLOCK, progress_bar=False)
            seconds["imitation-bc"].append(time.perf_counter() - start)
            start = time.perf_counter()
            # Goes on with the same optimiser; another seed a block, or it would see the same batches again.
            pc.inference.fit(
                (loss, optimizer), data, steps=PEER_BLOCK, batch_size=32, seed=seed * 10_000 + done, progress=False
            )
            seconds["bc"].append(time.perf_counter() - start)
        setting = {"updates": PEER_UPDATES, "batch_size": 32, "labels": len(data)}
        for method, actor in (("bc", policy), ("imitation-bc", theirs.policy)):
            spent = sum(seconds[method])
            value = statistics.mean(pc.envs.evaluate_policy(env, actor, 50, seed=TEST_SEED)["return"])
            rows.append(row(method, task, "return", value, seed=seed, seconds=spent, **setting))
            rate = PEER_BLOCK / statistics.median(seconds[method])
            rows.append(row(method, task, "updates_per_second", rate, seed=seed, seconds=spent, **setting))
        ratio = statistics.median(t / o for t, o in zip(seconds["imitation-bc"], seconds["bc"], strict=True))
        rows.append(row("bc", task, "speed_ratio", ratio, seed=seed, seconds=sum(seconds["bc"]), **setting))
    return rows


PARTS: dict[str, Callable[[int], Rows]] = {
    "error_growth": error_growth,
    "collect_lane": collect_lane,
    "collect_cart_pole": collect_cart_pole,
    "collect_reacher": collect_reacher,
    "t_maze": t_maze,
    "goals": goals,
    "peer": peer,
}


# -- tables and plots ---------------------------------------------------------------------------------------------


def pooled_exponent(rows: Rows, method: str) -> tuple[float, float, float]:
    """Return the exponent of the loss averaged over seeds, and its 95% interval by a bootstrap over seeds."""
    by_seed: dict[int, dict[int, float]] = {}
    for item in rows:
        if item["method"] == method and item["metric"] == "imitation_loss" and "horizon" in item["setting"]:
            by_seed.setdefault(item["seed"], {})[item["setting"]["horizon"]] = item["value"]
    losses = np.array([[found[horizon] for horizon in HORIZONS] for found in by_seed.values()])
    generator = np.random.default_rng(0)
    draws = [losses[generator.integers(len(losses), size=len(losses))].mean(0) for _ in range(2_000)]
    low, high = np.quantile([slope(list(draw)) for draw in draws if draw.min() > 0], (0.025, 0.975))
    return slope(list(losses.mean(0))), float(low), float(high)


def table(rows: Rows) -> str:
    """Return what the rows say as a Markdown table: mean and 95% interval over seeds (how many)."""
    lines = ["| task | metric | method | value (seeds) |", "|---|---|---|---|"]
    seen = []
    for item in rows:
        part, extra = item["setting"]["part"], item["setting"].get("horizon", item["setting"].get("distance"))
        key = (part, item["task"], item["metric"], item["method"], extra)
        if key in seen:
            continue
        seen.append(key)
        name = {"horizon": extra} if "horizon" in item["setting"] else {"distance": extra}
        found = summary(rows, item["method"], item["metric"], task=item["task"], part=part, **name)
        where = "" if extra is None else f", T = {extra}" if "horizon" in item["setting"] else f", goal at {extra}"
        interval = f" ± {found.half:.3g}" if found.seeds >= 4 else ""
        value = f"{found.mean:.4g}{interval} ({found.seeds})"
        lines.append(f"| {item['task']} | {item['metric']}{where} | {item['method']} | {value} |")
    for method in ("bc", "dagger"):
        if select(rows, method, "error_exponent"):
            exponent, low, high = pooled_exponent(rows, method)
            lines.append(f"| {LANE} | exponent of the mean loss | {method} | {exponent:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


def plot_error_growth(rows: Rows, path: Path) -> None:
    """Draw the imitation loss against the horizon, every seed and the mean, and the fitted powers."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, method in (("C3", "bc"), ("C0", "dagger")):
        means = [statistics.mean(select(rows, method, "imitation_loss", horizon=h) or [math.nan]) for h in HORIZONS]
        if not math.isfinite(means[0]):
            continue
        for seed in sorted({item["seed"] for item in rows if item["method"] == method}):
            chosen = [item for item in rows if item["seed"] == seed]
            values = [select(chosen, method, "imitation_loss", horizon=h) for h in HORIZONS]
            if all(values):
                axes.plot(HORIZONS, [value[0] for value in values], color=color, alpha=0.25, linewidth=0.8)
        exponent, low, high = pooled_exponent(rows, method)
        label = f"{method}: $T^{{{exponent:.2f}}}$ [{low:.2f}, {high:.2f}]"
        axes.plot(HORIZONS, means, color=color, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="horizon T (steps)", ylabel="imitation loss of an episode")
    axes.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
    axes.minorticks_off()
    axes.set_title("stay in the lane: errors of a clone grow as $T^2$, DAgger's as $T$", loc="left", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_overview(rows: Rows, path: Path) -> None:
    """Draw data collection, the T-maze and goals, a panel each, with every seed."""
    parts = {LANE: "collect_lane", "CartPole-v1": "collect_cart_pole", "Reacher-v5": "collect_reacher"}
    tasks = [task for task, part in parts.items() if select(rows, "bc", "return", task=task, part=part)]
    figure, panels = plt.subplots(1, len(tasks) + 2, figsize=(3.2 * (len(tasks) + 2), 3.6), layout="constrained")
    for axes, task in zip(panels, tasks, strict=False):
        bars(axes, rows, ("bc", "dagger", "dart", "dart-alpha", "teacher"), "return", task=task, part=parts[task])
        axes.set_title(task, loc="left", fontsize=10)
        axes.set_ylabel("return")
    bars(panels[-2], rows, ("reactive", "recurrent", "latent"), "success", part="t_maze")
    panels[-2].set_title("T-maze", loc="left", fontsize=10)
    panels[-2].set(ylabel="success", ylim=(0, 1.05))
    names = [f"{low:g} to {high:g} m" for low, high in zip(DISTANCES, DISTANCES[1:], strict=False)]
    for number, method in enumerate(("gcbc", "bc")):
        found = [summary(rows, method, "success", part="goals", distance=name) for name in names]
        places = np.arange(len(names)) + 0.1 * number
        half = [f.half if f.seeds >= 4 else math.nan for f in found]
        panels[-1].errorbar(places, [f.mean for f in found], half, marker="o", capsize=3, label=method)
    panels[-1].set_xticks(range(len(names)), [name.removesuffix(" m").replace(" to ", "-") for name in names])
    panels[-1].set_title("goals in hindsight", loc="left", fontsize=10)
    panels[-1].set(xlabel="distance of the goal (m)", ylabel="success", ylim=(0, 1.05))
    panels[-1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bars(axes: Any, rows: Rows, methods: tuple[str, ...], metric: str, **setting: Any) -> None:
    """Draw mean and interval of a metric by method, with every seed as a dot."""
    for place, method in enumerate(methods):
        values = select(rows, method, metric, **setting)
        if values:
            mean, half, seeds = mean_interval(values)
            # An interval from fewer than four seeds says nothing; the seeds themselves are shown instead.
            axes.errorbar([place], [mean], [half if seeds >= 4 else math.nan], marker="o", capsize=4, color=f"C{place}")
            axes.scatter([place + 0.15] * len(values), values, s=8, color=f"C{place}", alpha=0.6)
    axes.set_xticks(range(len(methods)), methods, rotation=25, fontsize=8)
    axes.set_xlim(-0.5, len(methods) - 0.5)


if __name__ == "__main__":
    if "--part" in sys.argv:
        tyro.cli(Part)()
    else:
        main(tyro.cli(Arguments, args=command_line()))
