import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyrocontrol._random_state import random_state, set_random_state
from pyrocontrol.envs.bubble_sort import demonstrations
from pyrocontrol.inference import load_checkpoint
from pyrocontrol.inference.objectives.stepwise import StepwiseKL_ELBO
from pyrocontrol.inference.training import checkpoint
from pyrocontrol.inference.training.fit import fit
from pyrocontrol.inference.training.updates import SVIUpdate
from pyrocontrol.models.policies.recurrent import RecurrentController

DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    """z ~ N(W x, 1), y ~ N(z, 1), with dropout so that a step draws at random in more than one way."""

    def __init__(self, width: int = 3, kind: str = "plain") -> None:
        super().__init__()
        self.prior = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.kind = kind
        self.checked = 0

    def signature(self) -> str:
        return f"chain {self.kind}"

    def check(self, data: Tensor) -> None:
        self.checked += 1
        if isinstance(data, Tensor) and not data.isfinite().all():
            raise ValueError("trace 3: an observation is not finite")

    def model(self, batch: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("batch", len(batch)):
            z = pyro.sample("z", dist.Normal(self.prior(batch[:, :3])[:, 0], 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch[:, 3])


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> None:
        pyro.module("guide", self)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(batch)):
            loc, log_scale = self.net(batch).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale * log_scale.exp()))


class Pair:
    """A fresh model and guide, as a process of its own would make them, and either way to train them."""

    def __init__(self, how: str = "svi", lr: float = 1e-2, kind: str = "plain") -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(123)
        self.chain, self.guide = Chain(kind=kind), Guide()
        self.modules = [self.chain, self.guide]
        if how == "svi":
            self.loss = SVI(self.chain.model, self.guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
        elif how == "schedule":
            options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}, "gamma": 0.9}
            self.loss = SVI(self.chain.model, self.guide, pyro.optim.ExponentialLR(options), Trace_ELBO())
        else:
            parameters = [p for module in self.modules for p in module.parameters()]
            self.loss = (Trace_ELBO()(self.chain.model, self.guide), torch.optim.Adam(parameters, lr=lr))

    def fit(self, steps: int, out: Path | None = None, **options):
        settings = dict(batch_size=4, seed=7, log_every=4, progress=False) | options
        data = settings.pop("data", DATA)
        return fit(self.loss, data, steps=steps, out=out, **settings)

    def fitted(self, steps: int, out: Path | None = None, **options) -> dict[str, Tensor]:
        self.fit(steps, out, **options)
        return self.state()

    def state(self) -> dict[str, Tensor]:
        state = {f"{i}.{k}": v.clone() for i, m in enumerate(self.modules) for k, v in m.state_dict().items()}
        loose = dict(pyro.get_param_store().named_parameters())
        return state | ({"scale": loose["scale"].detach().clone()} if "scale" in loose else {})


class Watched:
    """The data, with a look at every batch: `look(step under way, indices)`."""

    def __init__(self, look: Callable[[int, Tensor], object]) -> None:
        self.look, self.step = look, 0

    def __len__(self) -> int:
        return len(DATA)

    def fingerprint(self) -> str:
        return checkpoint.fingerprint(DATA)

    def __getitem__(self, indices: Tensor) -> Tensor:
        self.step += 1
        self.look(self.step, indices)
        return DATA[indices]


pytestmark = pytest.mark.usefixtures("interruptible")


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def assert_differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_fit_takes_the_steps_of_svi():
    fitted, batches = Pair(), []
    fitted.fit(15, data=Watched(lambda step, indices: batches.append(indices)))
    expected = fitted.state()
    stepped = Pair()
    pyro.set_rng_seed(7)
    for indices in batches:
        stepped.loss.step(DATA[indices])
    assert_same(expected, stepped.state())


def test_training_lowers_the_loss_and_keeps_a_curve():
    result = Pair().fit(402, log_every=100)
    assert [step for step, _ in result.losses] == [100, 200, 300, 400, 402]
    assert result.losses[3][1] < result.losses[0][1]
    assert result.step == 402 and not result.interrupted and result.seconds > 0


@pytest.mark.parametrize(("how", "clip"), [("svi", None), ("svi", 0.5), ("schedule", None), ("torch", 0.5)])
def test_a_resumed_run_equals_one_that_was_never_stopped(how, clip, tmp_path):
    straight = Pair(how)
    whole = straight.fit(26, tmp_path / "straight", clip=clip)
    expected = straight.state()
    Pair(how).fit(13, tmp_path / "halves", clip=clip)
    pyro.set_rng_seed(99)
    resumed = Pair(how)
    second = resumed.fit(26, tmp_path / "halves", clip=clip)
    assert_same(expected, resumed.state())
    assert second.losses == whole.losses and second.step == 26
    finals = [checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("straight", "halves")]
    assert str(finals[0]["optimizer"]) == str(finals[1]["optimizer"])
    assert torch.equal(finals[0]["random"]["torch"], finals[1]["random"]["torch"])


def test_a_model_made_anew_in_one_process_resumes_itself_and_not_the_old_one(tmp_path):
    first = Pair()
    first.fit(8, tmp_path)
    expected = first.state()
    store = pyro.get_param_store().get_state()
    again = Pair()
    pyro.get_param_store().set_state(store)  # as if nobody had cleared it
    again.fit(8, tmp_path)
    assert_same(expected, again.state())
    again.fit(12, tmp_path)
    assert_differ(expected, again.state())


def test_parameters_of_another_model_under_the_same_name_are_refused():
    Pair().fit(2)
    chain, guide = Chain(), Guide()
    svi = SVI(chain.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    with pytest.raises(ValueError, match="no parameter of the Chain reaches .*clear_param_store"):
        fit(svi, DATA, steps=2, batch_size=4, progress=False)


def test_a_module_that_pyro_does_not_know_is_refused():
    class Bare(Chain):
        def model(self, batch):
            with pyro.plate("batch", len(batch)):
                pyro.sample("y", dist.Normal(self.prior(batch[:, :3])[:, 0], 1.0), obs=batch[:, 3])

    bare = Bare()
    svi = SVI(bare.model, lambda batch: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    with pytest.raises(ValueError, match="no parameter reaches the optimiser: call pyro.module"):
        fit(svi, DATA, steps=2, batch_size=4, progress=False)


def test_an_autoguide_made_at_the_first_step_is_resumed(tmp_path):
    def model(batch):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("batch", len(batch)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=batch[:, 3])

    def run(steps, out):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        fit(SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()), DATA, steps=steps, batch_size=4,
            out=out, progress=False)  # fmt: skip
        return {name: value.clone() for name, value in guide.state_dict().items()}

    expected = run(14, None)
    run(6, tmp_path)
    assert_same(expected, run(14, tmp_path))


def test_fingerprints_of_numbers():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.setflags(write=False)
    found = [array, array[::-1], array.T, array.astype(np.float64), array[:0], np.array([1, "a"], object), array > 3]
    found += map(torch.tensor, (array, array.T.copy(), 3.0, True, [1 + 2j]))
    found.append(torch.ones(3, dtype=torch.bfloat16, requires_grad=True))
    assert len({checkpoint.fingerprint(one) for one in found}) == len(found)
    assert checkpoint.fingerprint(torch.tensor(array).T) == checkpoint.fingerprint(torch.tensor(array.T.copy()))


def test_every_random_generator_is_restored():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)
    np.random.randn()
    state = random_state()
    expected = draw()
    draw()
    set_random_state(state)
    assert draw() == expected


def test_every_epoch_visits_every_example_in_an_order_of_its_own():
    batches = []
    Pair().fit(10, data=Watched(lambda step, indices: batches.append(indices)))
    assert all(indices.dtype == torch.long and indices.shape == (4,) for indices in batches)
    epochs = torch.cat(batches).reshape(4, 10)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(10).expand(4, 10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


@pytest.mark.parametrize(("how", "presses"), [("svi", 1), ("svi", 2), ("torch", 2)])
def test_ctrl_c_saves_the_last_finished_step(how, presses, tmp_path):
    def press(step, indices):
        if step == 6:
            if presses == 2:  # a step that is dropped leaves no trace in any random state
                torch.rand(1), np.random.randn(1), random.gauss(0, 1)
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    expected = Pair(how).fitted(12)
    handler = signal.getsignal(signal.SIGINT)
    result = Pair(how).fit(12, tmp_path, data=Watched(press))
    finished = 6 if presses == 1 else 5  # the first press waits for the step, the second drops it
    Pair(how).fit(finished, tmp_path / "to")
    assert result.interrupted and result.step == finished
    assert signal.getsignal(signal.SIGINT) is handler
    there, straight = checkpoint.read(tmp_path / "checkpoint.pt"), checkpoint.read(tmp_path / "to" / "checkpoint.pt")
    assert str(there["random"]) == str(straight["random"])
    resumed = Pair(how)
    assert not resumed.fit(12, tmp_path).interrupted
    assert_same(expected, resumed.state())


def test_ctrl_c_during_an_update_waits_for_it(tmp_path):
    expected = Pair().fitted(12)
    pair = Pair()
    step, calls = torch.optim.Adam.step, []

    def step_with_ctrl_c(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 40:  # in the midst of the update of one step: 7 parameters, an optimiser each
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step_with_ctrl_c)
        assert pair.fit(12, tmp_path).interrupted
    assert len(calls) == 42 and checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 6
    assert_same(expected, Pair().fitted(12, tmp_path))


def test_keyboard_interrupt_out_of_the_model_drops_the_step(tmp_path):
    expected = Pair().fitted(9)
    pair = Pair()
    prior, calls = pair.chain.prior.forward, []

    def interrupted(inputs):
        calls.append(inputs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return prior(inputs)

    pair.chain.prior.forward = interrupted
    assert pair.fit(9, tmp_path)[0] == 4
    assert_same(expected, Pair().fitted(9, tmp_path))


def test_ctrl_c_during_an_evaluation_stops_at_once_and_the_evaluation_is_made_up_for(tmp_path):
    def evaluate(step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("Ctrl-C came too late")
        return {"draw": torch.rand(()).item()}

    first = Pair().fit(9, tmp_path, evaluate=evaluate, evaluate_every=3)
    assert first.interrupted and first.step == 6 and [step for step, _ in first.evaluations] == [3]
    second = Pair().fit(9, tmp_path, evaluate=lambda step: {"draw": 0.5}, evaluate_every=3)
    assert not second.interrupted and [step for step, _ in second.evaluations] == [3, 6, 9]


def test_evaluations_come_at_their_steps_and_the_end_and_once(tmp_path):
    result = Pair().fit(10, tmp_path, evaluate=lambda step: {"score": step}, evaluate_every=4)
    assert result.evaluations == [(4, {"score": 4.0}), (8, {"score": 8.0}), (10, {"score": 10.0})]
    assert Pair().fit(10, tmp_path, evaluate=lambda step: {"score": -1.0}) == result


@pytest.mark.parametrize("which", ["evaluate", "on_evaluation", "log"])
def test_what_is_called_changes_nothing_and_loses_no_step_when_it_raises(which, tmp_path):
    expected = Pair().fitted(9)

    def called(step, values=None):
        torch.rand(3), np.random.rand()
        calls.append((step, values))
        if which == failing and step >= 5:
            raise RuntimeError("nothing to see")
        return {"score": np.float32(0.5)}

    for failing in (which, None):
        calls: list = []
        given = {"evaluate": lambda step: {"score": np.float32(0.5)}, "evaluate_every": 5, which: called}
        if failing:
            with pytest.raises(RuntimeError, match="nothing to see"):
                Pair().fit(9, tmp_path, log_every=5, **given)
            assert load_checkpoint(tmp_path / "checkpoint.pt", *Pair().modules) == 5
        else:
            assert_same(expected, Pair().fitted(9, tmp_path / "new", log_every=3, **given))
    assert_same(expected, Pair().fitted(9, tmp_path))
    if which == "log":
        assert [step for step, _ in calls] == [3, 6, 9] and set(calls[0][1]) == {"loss", "steps_per_second"}
    else:
        assert calls == [(step, {"score": 0.5} if which == "on_evaluation" else None) for step in (5, 9)]


@pytest.mark.parametrize("which", ["evaluate", "on_evaluation", "log"])
def test_what_is_called_is_a_function(which):
    with pytest.raises(TypeError, match=f"{which} must be a function of .* got 5"):
        Pair().fit(9, **{which: 5})


def test_clip_bounds_the_norm_of_the_gradient():
    def travel(clip):
        pair = Pair()
        pair.loss.optim = pyro.optim.SGD({"lr": 1.0})
        before = pair.state()
        pair.fit(1, clip=clip)
        after = pair.state()
        return sum((after[name] - before.get(name, torch.zeros(()))).square().sum() for name in after).sqrt()

    assert travel(None) > 0.1
    torch.testing.assert_close(travel(1e-3), torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro says so too
@pytest.mark.parametrize("how", ["svi", "torch"])
def test_a_loss_that_is_not_finite_stops_and_the_last_good_checkpoint_stands(how, tmp_path):
    pair = Pair(how)

    def spoil(step, indices):
        if step == 6:
            with torch.no_grad():
                pair.guide.net.bias.fill_(torch.nan)

    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="step 6.*holds step 4"):
        pair.fit(9, tmp_path, data=Watched(spoil), checkpoint_every=2)
    assert load_checkpoint(tmp_path / "checkpoint.pt", *Pair(how).modules) == 4


def test_a_loss_kept_on_its_device_is_read_only_to_log_and_gives_the_same_curve(tmp_path, monkeypatch):
    expected = Pair().fit(10).losses
    loop = sys.modules[SVIUpdate.__module__]
    value, reads = loop._value, []

    class Deferred(Tensor):  # a stand-in for a tensor on a GPU
        def __float__(self):
            reads.append(self)
            return self.item()

    deferred = lambda loss: torch.tensor(value(loss), dtype=torch.double).as_subclass(Deferred)  # noqa: E731
    monkeypatch.setattr(loop, "_value", deferred)
    assert Pair().fit(10).losses == expected
    assert len(reads) == 3  # at steps 4 and 8, and the rest at the end

    def spoil(step):
        monkeypatch.setattr(loop, "_value", lambda loss: torch.tensor(torch.nan))
        return {}

    with pytest.raises(FloatingPointError, match="loss or a parameter is not finite at step 6.*holds step 4"):
        Pair().fit(10, tmp_path, evaluate=spoil, evaluate_every=4, checkpoint_every=2)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    pair = Pair()

    def spoil(step):
        with torch.no_grad():
            pair.guide.net.bias.fill_(torch.inf)
        return {}

    with pytest.raises(FloatingPointError, match="step 5.*holds step 4"):
        pair.fit(9, tmp_path, evaluate=spoil, evaluate_every=5, checkpoint_every=1)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


WRONG = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "other": lambda path: torch.save({"weights": torch.zeros(2)}, path),
    "code": lambda path: torch.save({"format": checkpoint.FORMAT, "step": Payload()}, path),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_is_no_checkpoint_is_refused_and_executes_nothing(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Pair().fit(3, tmp_path)
    path = tmp_path / "checkpoint.pt"
    make(path)
    wrong, fresh = path.read_bytes(), Pair()
    before = fresh.state()
    with pytest.raises(ValueError, match="checkpoint.pt is truncated or not a checkpoint"):
        fresh.fit(6, tmp_path)
    with pytest.raises(ValueError, match="checkpoint.pt is truncated or not a checkpoint"):
        load_checkpoint(path, fresh.chain)
    assert_same(before, fresh.state())
    assert path.read_bytes() == wrong and not Path("executed").exists()


def test_a_process_killed_while_writing_leaves_the_previous_checkpoint_to_another(tmp_path):
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import io, os, signal, torch
from pathlib import Path
from test_fit import Pair
torch.set_num_threads(int(sys.argv[3]))
save, saves = torch.save, []
def killed(content, file):
    saves.append(content)
    if len(saves) < 3:
        return save(content, file)
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
Pair().fit(12, Path(sys.argv[2]), checkpoint_every=3)
"""
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path), str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(command, env=environment, timeout=300).returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "checkpoint.pt", *Pair().modules) == 6
    expected = Pair().fitted(12)
    assert_same(expected, Pair().fitted(12, tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "tensorboard"]


def test_a_checkpoint_of_another_model_is_refused_and_nothing_changes(tmp_path):
    Pair().fit(3, tmp_path)
    path = tmp_path / "checkpoint.pt"
    saved = path.read_bytes()
    other = Pair(kind="other")
    before = other.state()
    with pytest.raises(ValueError, match=r"another model: its Chain is\nchain plain\nand this one is\nchain other"):
        other.fit(6, tmp_path)
    wide = Chain(width=5)
    guide = Guide()
    for module in (wide, nn.Linear(4, 2), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="another model"):
            load_checkpoint(path, guide, module)
    with pytest.raises(ValueError, match=r"Chain.prior.0.weight has shape \(8, 3\), not \(8, 5\)"):
        load_checkpoint(path, wide)
    assert_same(before, other.state())
    assert not torch.equal(guide.net.weight, load_into(path, Guide()).net.weight)
    assert path.read_bytes() == saved


def load_into(path: Path, module: nn.Module) -> nn.Module:
    load_checkpoint(path, module)
    return module


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("svi", {"seed": 8}, "seed=7, not 8"),
        ("svi", {"data": DATA[:8]}, "examples=10, not 8"),
        ("torch", {"clip": 1.0}, "clip=None, not 1.0|optimizer=Adam, not torch Adam"),
    ],
)
def test_a_checkpoint_made_under_other_settings_is_refused(how, options, message, tmp_path):
    Pair().fit(3, tmp_path)
    with pytest.raises(ValueError, match=message):
        Pair(how).fit(6, tmp_path, **options)
    with pytest.raises(ValueError, match="lr=0.01, not 0.1"):
        Pair(lr=0.1).fit(6, tmp_path)
    with pytest.raises(ValueError, match="at step 3, beyond steps=2"):
        Pair().fit(2, tmp_path)
    assert Pair(how).fit(6, tmp_path, resume=False, **options).step == 6


def adam(coin: nn.Module, lr: float = 0.1, **options) -> torch.optim.Optimizer:
    """The first layer and the rest in groups of their own, one with a rate of its own."""
    first, *others = coin.prior.parameters()
    return torch.optim.Adam([{"params": [first]}, {"params": others, "lr": lr, **options}], lr=0.01)


def svi_of(optimizer, **options) -> Callable[[Chain, Guide], SVI]:
    return lambda chain, guide: SVI(chain.model, guide, optimizer, Trace_ELBO(**options))


def pair_of(optimizer, how: Callable[[Chain], object] = lambda chain: None) -> Callable[[Chain, Guide], tuple]:
    def make(chain: Chain, guide: Guide) -> tuple:
        guide.requires_grad_(False).eval()
        how(chain)
        return Trace_ELBO()(chain.model, guide), optimizer(chain)

    return make


def falling(gamma: float):
    return pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": gamma})


def stepped(slope: float):
    given = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "lr_lambda": lambda step: 1 - slope * step}
    return pyro.optim.LambdaLR(given)


def by_name(lr: float):
    return pyro.optim.Adam(lambda name: {"lr": lr if name.endswith("bias") else 0.01})


OTHERS = {
    "gamma=0.8, not 0.1": [svi_of(falling(gamma)) for gamma in (0.8, 0.1)],
    "scheduler=ExponentialLR, not LambdaLR": [svi_of(optimizer) for optimizer in (falling(0.8), stepped(0.1))],
    "lr_lambda.*=0.1, not 0.2": [svi_of(stepped(slope)) for slope in (0.1, 0.2)],
    "optim_args.*=0.1, not 0.2": [svi_of(by_name(lr)) for lr in (0.1, 0.2)],
    "clip_norm=1.0, not None": [svi_of(pyro.optim.Adam({"lr": 0.1}, clip)) for clip in ({"clip_norm": 1.0}, None)],
    "clip_norm=None, not 1.0": [svi_of(pyro.optim.Adam({"lr": 0.1}, clip)) for clip in (None, {"clip_norm": 1.0})],
    "optimizer=Adam, not SGD": [svi_of(kind({"lr": 0.1})) for kind in (pyro.optim.Adam, pyro.optim.SGD)],
    r"groups\[1\].lr=0.1, not 0.5": [pair_of(lambda chain, lr=lr: adam(chain, lr)) for lr in (0.1, 0.5)],
    r"groups\[1\].betas=\[0.9, 0.999\], not \[0.5": [
        pair_of(adam),
        pair_of(lambda chain: adam(chain, betas=(0.5, 0.999))),
    ],
    r"groups=\[.*Chain.prior.0.weight \[8, 3\]": [
        pair_of(adam),
        pair_of(lambda chain: torch.optim.Adam(chain.parameters(), lr=0.01)),
    ],
    "frozen.*, not .*Chain.prior.0.bias": [
        pair_of(adam),
        pair_of(adam, lambda chain: chain.prior[0].bias.requires_grad_(False)),
    ],
    r"prior.2=Dropout\(p=0.2, .*, not Dropout\(p=0.5": [
        pair_of(adam),
        pair_of(adam, lambda chain: setattr(chain.prior[2], "p", 0.5)),
    ],
    "is of torch.float32, not torch.float64": [pair_of(adam), pair_of(adam, lambda chain: chain.prior.double())],
    f"data_fingerprint={checkpoint.fingerprint(DATA)}, not": [pair_of(adam)] * 2,
}


@pytest.mark.parametrize("message", OTHERS)
def test_whatever_decides_the_result_is_described_and_another_is_refused(message, tmp_path):
    def train(make, steps: int, data: Tensor = DATA) -> dict[str, Tensor]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        chain, guide = Chain(), Guide()
        before = {name: value.clone() for name, value in chain.state_dict().items()}
        try:
            fit(make(chain, guide), data, steps=steps, batch_size=4, out=tmp_path, progress=False)
        except ValueError:
            assert_same(before, dict(chain.state_dict()))
            raise
        return before

    one, other = OTHERS[message]
    train(one, 2)
    train(one, 4)
    with pytest.raises(ValueError, match=message):
        train(other, 6, DATA + 1 if message.startswith("data") else DATA)
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path, Chain().double()) == 4  # to evaluate, not to train on
    if message.startswith("gamma"):  # a checkpoint of version 0.1 goes on, as before
        content = checkpoint.read(path)
        new = ("optim_args", "clip_args", "scheduler", "scheduler_args", "frozen", "data_fingerprint")
        settings = {name: value for name, value in content["settings"].items() if name not in new}
        torch.save({n: v for n, v in content.items() if n != "version"} | {"settings": settings}, path)
        train(other, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 11}, "batch_size 11 exceeds the 10 examples"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"evaluate_every": 5}, "no evaluate"),
        ({"device": "nowhere"}, "device nowhere cannot be used"),
        ({"out": Path(__file__) / "new"}, "test_fit.py is a file, not a folder"),
        ({"data": DATA.log()}, "trace 3: an observation is not finite"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(options, message, tmp_path):
    pair = Pair()
    before = pair.state()
    with pytest.raises(ValueError, match=message):
        pair.fit(**{"steps": 3, "out": tmp_path / "new"} | options)
    assert_same(before, pair.state())
    assert not (tmp_path / "new").exists()


def test_an_optimiser_that_does_not_reach_all_is_refused():
    chain, guide = Chain(), Guide()
    loss = Trace_ELBO()(chain.model, guide)  # its parameters() are the guide's alone
    optimizer = torch.optim.Adam(loss.parameters())
    for given, message in (
        (torch.optim.Adam(Chain().parameters()), "the optimiser holds 4 parameters that no module"),
        (optimizer, r"no parameter of the Chain is in the optimiser: use elbo\(program, guide\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit((loss, given), DATA, steps=1, batch_size=4, progress=False)
    chain.requires_grad_(False).eval()
    assert fit((loss, optimizer), DATA, steps=1, batch_size=4, progress=False).step == 1
    for svi, kinds in (
        (loss, "ELBOModule"),
        ((optimizer, loss), r"\(Adam, ELBOModule\)"),
        ((loss, pyro.optim.Adam({"lr": 0.1})), r"\(ELBOModule, PyroOptim\)"),
    ):
        message = rf"pass an SVI or a pair \(loss, optimizer\) with a torch optimiser, not {kinds}"
        with pytest.raises(TypeError, match=message):
            fit(svi, DATA, steps=1, batch_size=4, progress=False)


class Recurrent:
    """A recurrent controller, trained on sorting, which needs no guide."""

    def __init__(self, demos, elbo=None):
        pyro.clear_param_store()
        self.module = RecurrentController(demos.observations.shape[-1], demos.num_actions, hidden=4, layers=1)
        svi = SVI(self.module.model, lambda traces: None, pyro.optim.Adam({"lr": 0.01}), elbo or Trace_ELBO())
        self.fit = lambda data, **options: fit(svi, data, steps=2, batch_size=2, progress=False, **options)


def test_what_is_no_dataset_or_not_of_the_kind_is_refused():
    for given in ([1, 2, 3], {0: 1, 1: 2, 2: 3}, 3):
        with pytest.raises(TypeError, match=f"data must be a dataset .* Demonstrations, not {type(given).__name__}"):
            Pair().fit(2, data=given)
    run = Recurrent(demonstrations(3, 0))
    with pytest.raises(TypeError, match="RecurrentController learns from: Tensor has no attribute 'action_space'"):
        run.fit(DATA)
    run.module.check = lambda data: run.module.unknown  # an error of the check itself stays as it is
    with pytest.raises(AttributeError, match="unknown"):
        run.fit(DATA)


class Weighed(nn.Module):
    """A loss of somebody's own, with what decides it, what training changes, and what does not matter."""

    def __init__(self, weight: float, sizes: tuple[int, ...] = (1,), table: float = 0.0, where: str = "here") -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(()))
        self.weight, self.sizes, self.table, self._where = weight, sizes, torch.tensor([table]), where
        self.calls, self.checks, self.heat = 0, 0, 2.0

    def check(self, data: Tensor) -> None:
        self.checks += 1

    def forward(self, batch: Tensor) -> Tensor:
        self.calls, self.heat = self.calls + 1, self.heat / 2
        return (self.weight * (self.x - batch.mean())) ** 2


def test_attributes_of_a_loss_of_ones_own_are_described_unless_training_changes_them(tmp_path):
    def train(loss: nn.Module, steps: int) -> int:
        pair = loss, torch.optim.SGD(loss.parameters(), lr=1e-2)
        return fit(pair, DATA, steps=steps, batch_size=4, out=tmp_path, progress=False).step

    loss = Weighed(1.0)
    assert train(loss, 2) == 2
    assert train(Weighed(1.0, where="there"), 4) == 4  # as in another process
    assert train(loss, 6) == 6  # as in the same one
    for other, unlike in (
        (Weighed(2.0), "Weighed.weight=1.0, not 2.0"),
        (Weighed(1.0, (1, 2)), r"Weighed.sizes=\[1\], not \[1, 2\]"),
        (Weighed(1.0, table=1.0), "Weighed.table=[0-9a-f]{16}, not [0-9a-f]{16}"),
    ):
        with pytest.raises(ValueError, match=f"was made with {unlike}; pass resume=False"):
            train(other, 8)
    assert train(Weighed(1.0), 8) == 8


def test_data_of_another_precision_is_taken_with_a_note_where_it_is_rounded():
    demos = demonstrations(3, 0)
    curve = Recurrent(demos).fit(demos).losses
    with pytest.warns(UserWarning, match=r"the data is torch.float64, the model torch.float32: the data is rounded"):
        assert Recurrent(demos).fit(demos.to(dtype=torch.float64)).losses == curve
    run = Recurrent(demos)
    run.module.double()
    assert run.fit(demos).step == 2


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    demos, others = demonstrations(6, 0), demonstrations(6, 1)
    Recurrent(demos).fit(demos, out=tmp_path)
    assert Recurrent(demos).fit(demos[:], out=tmp_path).step == 2
    message = f"data_fingerprint={demos.fingerprint()}, not {others.fingerprint()}"
    with pytest.raises(ValueError, match=message):
        Recurrent(demos).fit(others, out=tmp_path)


@pytest.mark.parametrize(
    ("elbo", "message"),
    [
        (TraceMeanField_ELBO(), "loss=Trace_ELBO, not TraceMeanField_ELBO"),
        (Trace_ELBO(num_particles=2), "loss.num_particles=1, not 2"),
        (Trace_ELBO(vectorize_particles=True), "loss.vectorize_particles=False, not True"),
        (lambda model, guide, batch: 0.0, r"loss=Trace_ELBO, not <lambda>"),
    ],
)
def test_a_checkpoint_of_another_objective_is_refused(elbo, message, tmp_path):
    demos = demonstrations(6, 0)
    Recurrent(demos).fit(demos, out=tmp_path)
    with pytest.raises(ValueError, match=message):
        Recurrent(demos, elbo).fit(demos, out=tmp_path)
    Recurrent(demos, Trace_ELBO(max_plate_nesting=1)).fit(demos, out=tmp_path)  # a bound, not an objective


def test_an_elbo_goes_on_from_itself_alone(tmp_path):
    demos = demonstrations(6, 0)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)  # its first run guesses max_plate_nesting
    assert [Recurrent(demos, elbo).fit(demos, out=tmp_path / "a").step for _ in range(2)] == [2, 2]
    for score in ("sequential", "full"):
        pair = Pair()
        pair.loss = SVI(pair.chain.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), StepwiseKL_ELBO(score=score))
        with nullcontext() if score == "sequential" else pytest.raises(ValueError, match="score=sequential, not full"):
            assert pair.fit(2, tmp_path / "b").step == 2


def test_numpy_numbers_among_settings_can_be_saved(tmp_path):
    Pair(lr=np.float64(0.01)).fit(3, tmp_path, seed=np.int64(7))
    assert Pair().fit(4, tmp_path).step == 4


def test_tensorboard_gets_loss_rate_gradient_and_evaluations(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Pair().fit(8, tmp_path, clip=1.0, evaluate=lambda step: {"exact_match": 0.25}, evaluate_every=4)
    Pair().fit(12, tmp_path, clip=1.0, evaluate=lambda step: {"exact_match": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "steps_per_second", "gradient_norm", "exact_match"}
    assert [event.step for event in events.Scalars("loss")] == [4, 8, 12]
    scores = [(event.step, event.value) for event in events.Scalars("exact_match")]
    assert scores == [(4, 0.25), (8, 0.25), (12, 0.75)]


def test_off_a_terminal_progress_is_a_line_at_once_and_every_tenth(capfd, tmp_path):
    Pair().fit(40, tmp_path, progress=True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[0] == "step 0/40"
    assert lines[-1].startswith("step 40/40  loss ") and "steps/s" in lines[-1]
    Pair().fit(40, tmp_path, progress=True)
    assert capfd.readouterr().err == "step 40/40: finished before; nothing to do\n"
    Pair().fit(40, progress=False)
    assert capfd.readouterr() == ("", "")


def test_modules_and_batches_move_to_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pair = Pair()
    pair.fit(8, device="cuda")
    assert all(parameter.is_cuda for parameter in pair.chain.parameters())
