"""Two processes that train together. The file is also what they run, as ``test_processes.py WHAT FOLDER``."""

import itertools
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyrocontrol.guides import GaussianPolicy
from pyrocontrol.inference import SoftActorCritic, fit, fit_best, learn, learn_together, load_checkpoint
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.inference.training.optimized import Optimized
from pyrocontrol.inference.training.processes import Processes

DATA = torch.randn(7, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
BATCH = 5  # the shares are of three and of two


class Squares(nn.Module):
    """Squared errors, over a batch summed or averaged; a part of the network sees few of the rows."""

    def __init__(self, reduction: str, noise: float = 0.0) -> None:
        super().__init__()
        self.reduction, self.noise = reduction, noise
        self.net, self.rare = nn.Linear(2, 1), nn.Linear(2, 1)
        self.double()

    def forward(self, batch: Tensor) -> Tensor:
        made = self.net(batch[:, :2])[:, 0]
        if (seen := batch[:, 0] > 0.9).any():
            made = made + self.rare(batch[:, :2])[:, 0] * seen
        error = (made + self.noise * torch.randn(len(batch)) - batch[:, 2]).square()
        return error.sum() if self.reduction == "sum" else error.mean()


class Located(nn.Module):
    """A model and a guide without noise, with a parameter that only a first run makes."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.net = nn.Linear(3, 1).double()

    def plate(self, batch: Tensor) -> Any:
        return pyro.plate("rows", len(DATA) if self.scaled else len(batch), subsample=batch)

    def model(self, batch: Tensor) -> None:
        with self.plate(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(batch)).double(), 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=batch[:, 2])

    def guide(self, batch: Tensor) -> None:
        pyro.module("net", self.net)
        shift = pyro.param("shift", torch.randn((), dtype=torch.double))
        with self.plate(batch):
            pyro.sample("z", dist.Delta(self.net(batch)[:, 0] + shift))


def torch_pair(reduction: str, seed: int = 0, noise: float = 0.0) -> Any:
    torch.manual_seed(seed)
    loss = Squares(reduction, noise)
    return loss, torch.optim.Adam(loss.parameters(), lr=0.1)


def svi(reduction: str, seed: int = 0) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    module = Located(reduction == "mean")
    return SVI(module.model, module.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def trained(what: Any, reduction: Any, steps: int, **options: Any) -> dict[str, Any]:
    result = fit(
        what,
        DATA,
        steps=steps,
        batch_size=BATCH,
        reduction=reduction,
        progress=False,
        **{"log_every": 1, "clip": 3.0} | options,
    )
    store = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    modules = {} if isinstance(what, SVI) else {n: v.clone() for n, v in what[0].state_dict().items()}
    return {"values": modules | store, "losses": result.losses, "stop": (result.step, result.interrupted)}


def at_step(number: int, do: Callable[[], object]) -> Callable[..., None]:
    """A hook that does something in one forward pass."""
    passes = itertools.count(1)

    def hook(*_: object) -> None:
        if next(passes) == number:
            do()

    return hook


CASES = [(make, reduction) for make in (torch_pair, svi) for reduction in ("sum", "mean")]


def train_in_each(fabric: Any, folder: Path) -> dict[str, Any]:
    """What a process of two found, several runs one after the other."""
    rank, found = fabric.global_rank, dict[str, Any]()
    for make, reduction in CASES:  # each process begins with other weights, which counts for nothing
        found[f"{make.__name__} {reduction}"] = trained(make(reduction, seed=rank), reduction, 5, fabric=fabric)
    # Noise; stopped and gone on from; what is written and called.
    calls: list[int] = []
    told: dict[str, Any] = {
        "evaluate": lambda step: {"score": float(step)},
        "log": lambda step, _: calls.append(step),
        "evaluate_every": 2,
        "fabric": fabric,
    }
    found["noise"] = trained(torch_pair("sum", noise=1.0), "sum", 6, fabric=fabric, checkpoint_every=0)
    trained(torch_pair("sum", noise=1.0), "sum", 3, out=folder / "resumed", **told)
    found["resumed"] = trained(torch_pair("sum", noise=1.0), "sum", 6, out=folder / "resumed", **told)
    found["calls"] = calls
    trained(torch_pair("sum"), "sum", 3, out=folder / "on alone", fabric=fabric)
    # Ctrl-C in one of them.
    pair = torch_pair("sum")

    pair[0].register_forward_hook(at_step(3, lambda: rank == 1 and os.kill(os.getpid(), signal.SIGINT)))
    found["pressed"] = trained(pair, "sum", 9, out=folder / "pressed", fabric=fabric)
    found["best"] = fit_best(
        lambda seed: torch_pair("sum", seed, noise=1.0),
        DATA,
        starts=3,
        trial_steps=2,
        steps=3,
        batch_size=BATCH,
        out=folder / "best",
        progress=False,
        fabric=fabric,
    ).losses
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for reduction, other in (("sum", "mean"), ("mean", "sum"), ("sum", "sum"), ("mean", "mean")):
            trained(torch_pair(reduction), other, 1, fabric=fabric)
    found["warned"] = [str(warning.message) for warning in warned if "of its halves" in str(warning.message)]
    # An error in the leading process, and one in calling.
    for name, options in {"other": {"clip": 1.0, "out": folder / "resumed"}, "unlike": {"seed": rank}}.items():
        try:
            trained(torch_pair("sum"), "sum", 6, fabric=fabric, **options)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


class Regression(Optimized):
    """A learner of rewards, without noise in what it learns; it keeps its batches."""

    observation_size, action_size = 3, 1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.policy = GaussianPolicy(3, 1, hidden=(4,)).double()
        self.net = nn.Linear(4, 1).double()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        return torch.rand(1, dtype=torch.double).numpy() - 0.5

    def update(self, batch: Any) -> dict[str, Tensor]:
        inputs = torch.cat([batch.observations, batch.actions], -1)
        self.batches.append((inputs, batch.rewards))
        return self.learn(inputs, batch.rewards)

    def learn(self, inputs: Tensor, rewards: Tensor) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        loss = (self.net(inputs)[:, 0] - rewards).square().mean()
        loss.backward()
        self.optimizer.step()
        return {"critic_loss": loss.detach()}


def learned(learner: Any, steps: int, **options: Any) -> dict[str, Any]:
    result = learn(
        learner,
        gymnasium.make("Pendulum-v1", max_episode_steps=8),
        steps=steps,
        start=4,
        batch_size=5,
        replay=100,
        progress=False,
        **{"log_every": 1, "checkpoint_every": 10} | options,
    )
    weights = {name: p.detach().clone() for name, p in learner.named_parameters()}
    return {"values": weights, "losses": result.losses, "returns": result.returns, "step": result.step}


def actor_critic(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return SoftActorCritic(GaussianPolicy(3, 1, hidden=(4,)), 3, 1, hidden=(4,))


def learn_in_each(fabric: Any, folder: Path) -> dict[str, Any]:
    rank, found = fabric.global_rank, dict[str, Any]()
    regression = Regression(rank)
    found["regression"] = learned(regression, 20, fabric=fabric) | {"batches": regression.batches}
    out, logged = folder / "learned", list[int]()
    given: dict[str, Any] = {"out": out, "fabric": fabric, "log": lambda step, _: logged.append(step)}
    learned(actor_critic(rank), 20, **given)
    found["two"] = learned(actor_critic(), 30, **given) | {"logged": logged}
    found["files"] = sorted(file.name for file in out.iterdir())
    if rank == 0:
        learned(actor_critic(), 20, out=folder / "grown")
    fabric.barrier()
    found["grown"] = learned(actor_critic(), 30, out=folder / "grown", fabric=fabric)
    try:
        envs = [gymnasium.make("Pendulum-v1") for _ in range(2)]
        learn_together([actor_critic(), actor_critic(1)], envs, seeds=[0, 1], steps=5, fabric=fabric)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def train_and_die(fabric: Any, folder: Path) -> None:
    """Process 1 is killed in the middle of step 6."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which may come before what the other says
    pair = torch_pair("sum")
    pair[0].register_forward_hook(at_step(6, lambda: fabric.global_rank == 1 and os.kill(os.getpid(), signal.SIGKILL)))
    trained(pair, "sum", 9, out=folder / "out", fabric=fabric, checkpoint_every=2)


def launch(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, what, str(folder)], env=environment, text=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    pytest.importorskip("lightning_fabric")
    folder = tmp_path_factory.mktemp("both")
    done = launch("train", folder)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    pytest.importorskip("lightning_fabric")
    folder = tmp_path_factory.mktemp("learners")
    done = launch("learn", folder)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["values"].keys() == other["values"].keys() != set()
    for name, value in one["values"].items():
        assert torch.allclose(value, other["values"][name], rtol=0, atol=tolerance), name
    assert torch.allclose(torch.tensor(one["losses"]), torch.tensor(other["losses"]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("make, reduction", CASES, ids=lambda given: getattr(given, "__name__", given))
def test_the_steps_are_those_of_one_process_on_whole_batches(both: Any, make: Any, reduction: str) -> None:
    found = [each[f"{make.__name__} {reduction}"] for each in both[1]]
    alone = trained(make(reduction), reduction, 5)
    assert_close(found[0], found[1], 0.0)
    assert_close(alone, found[0], 1e-12)
    wrong = trained(make(reduction), reduction, 5, seed=1)
    assert not torch.allclose(torch.tensor(wrong["losses"]), torch.tensor(alone["losses"]), atol=1e-3)


def test_a_run_that_was_stopped_comes_to_the_same_bits(both: Any) -> None:
    for each in both[1]:
        assert_close(each["noise"], each["resumed"], 0.0)
    assert_close(both[1][0]["noise"], both[1][1]["noise"], 0.0)


def test_process_0_alone_writes_and_logs_and_evaluates(both: Any) -> None:
    folder, found = both
    assert found[0]["calls"] == [1, 2, 3, 4, 5, 6] and found[1]["calls"] == []
    assert sorted(file.name for file in (folder / "resumed").iterdir()) == ["checkpoint.pt", "tensorboard"]
    assert len([*(folder / "resumed" / "tensorboard").iterdir()]) == 2  # of two calls


def test_one_process_goes_on_from_two(both: Any) -> None:
    alone = trained(torch_pair("sum"), "sum", 6)
    assert_close(alone, trained(torch_pair("sum"), "sum", 6, out=both[0] / "on alone"), 1e-12)


def test_all_processes_go_on_with_the_same_of_several_starts(both: Any) -> None:
    assert both[1][0]["best"] == both[1][1]["best"] and len({*both[1][0]["best"]}) == 3


def test_a_loss_that_is_another_sum_of_its_batch_than_was_said_is_noticed(both: Any) -> None:
    first, second = (each["warned"] for each in both[1])
    assert len(first) == 2 and not second
    assert "it is the sum over examples" in first[0] and "it is the mean over examples" in first[1]


def test_ctrl_c_in_one_process_stops_both_after_the_same_step(both: Any) -> None:
    folder, found = both
    assert [each["pressed"]["stop"] for each in found] == [(3, True), (3, True)]
    assert load_checkpoint(folder / "pressed" / "checkpoint.pt", Squares("sum")) == 3


def test_an_error_of_one_is_an_error_of_both(both: Any) -> None:
    first, second = both[1]
    assert first["other"].startswith("ValueError") and "clip=3.0, not 1.0" in first["other"]
    assert second["other"] == f"RuntimeError: the leading process of this run raised {first['other']}"
    assert second["unlike"] == "ValueError: process 1 was not called as the leading one was: there is seed=0, not 1"


def test_a_killed_process_ends_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    done = launch("die", tmp_path)
    assert done.returncode != 0
    assert "another process of this run has ended; the last checkpoint stands" in done.stderr
    pair = torch_pair("sum")
    assert load_checkpoint(tmp_path / "out" / "checkpoint.pt", pair[0]) == 4
    assert [file.name for file in sorted((tmp_path / "out").iterdir())][-2:] == ["checkpoint.pt", "tensorboard"]
    alone = trained(torch_pair("sum"), "sum", 9)
    assert_close(alone, trained(torch_pair("sum"), "sum", 9, out=tmp_path / "out"), 1e-12)


def test_learners_step_by_the_gradient_on_all_batches_together(learners: Any) -> None:
    found = [each["regression"] for each in learners[1]]
    union = Regression()
    pairs = list(zip(*(each["batches"] for each in found), strict=True))
    assert len(pairs) == 16 and not torch.equal(pairs[0][0][0], pairs[0][1][0])
    for one, other in pairs:
        union.learn(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
    for name, value in union.named_parameters():
        assert torch.allclose(value, found[0]["values"][name], rtol=0, atol=1e-12)
        assert torch.equal(found[0]["values"][name], found[1]["values"][name])


def test_learning_goes_on_with_another_number_of_processes(learners: Any) -> None:
    folder, (first, second) = learners
    for run in ("two", "grown"):
        for name, value in first[run]["values"].items():
            assert torch.equal(value, second[run]["values"][name])
        assert first[run]["returns"] != second[run]["returns"]  # of their own environments
        assert first[run]["step"] == second[run]["step"] == 30
    assert first["files"] == ["checkpoint.pt", "replay-0-1.bin", "replay-0.bin", "tensorboard"]
    assert {*range(5, 31)} <= {*first["two"]["logged"]}
    assert second["two"]["logged"] == []
    alone = actor_critic()
    assert learned(alone, 40, out=folder / "learned")["step"] == 40 and alone.updates == 36
    assert sorted(file.name for file in (folder / "learned").iterdir()) == [
        "checkpoint.pt",
        "replay-0.bin",
        "tensorboard",
    ]
    content = checkpoint.read(folder / "grown" / "checkpoint.pt")
    assert [each["replay"]["total"] for each in (content, *content["others"])] == [30, 30]


def test_learners_that_processes_cannot_share_are_refused(learners: Any) -> None:
    for each in learners[1]:
        assert each["refused"].startswith("several processes can train one learner with one optimiser")


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_a_partition_of_equal_lengths(count: int) -> None:
    lengths, batch = torch.arange(100).square(), torch.randperm(100)[:64]
    shares = []
    for rank in range(count):
        each = Processes()
        each.rank, each.count = rank, count
        shares.append(each.share(batch, lengths))
    assert sorted(torch.cat(shares).tolist()) == sorted(batch.tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    totals = [int(lengths[share].sum()) / len(share) for share in shares]
    assert max(totals) / min(totals) < 1.1
    assert Processes().share(batch, lengths) is batch


def test_a_fabric_has_to_be_launched_and_to_fit_the_rest() -> None:
    class Two:
        global_rank, world_size, device = 0, 2, torch.device("cpu")

    one: Any = Two()
    with pytest.raises(ValueError, match=r"2 processes and has started none: call fabric.launch\(\)"):
        trained(torch_pair("sum"), "sum", 1, fabric=one)
    with pytest.raises(ValueError, match="device is cuda, but the fabric is for cpu: give one of them"):
        trained(torch_pair("sum"), "sum", 1, fabric=one, device="cuda")
    one.world_size = 1  # alone, it changes nothing
    assert_close(trained(torch_pair("sum"), "sum", 2), trained(torch_pair("sum"), "sum", 2, fabric=one), 0.0)


if __name__ == "__main__":
    from lightning_fabric import Fabric

    launched = Fabric(accelerator="cpu", devices=2)
    launched.launch()
    what = {"train": train_in_each, "die": train_and_die, "learn": learn_in_each}[sys.argv[1]]
    torch.save(what(launched, Path(sys.argv[2])), Path(sys.argv[2]) / f"{launched.global_rank}.pt")
