"""The benchmark of mutual information: its closed forms, and a tiny run that says what it should."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrocontrol.inference import summary


@pytest.mark.parametrize("m", [2, 3])
def test_the_posteriors_are_those_of_the_joint_normal(benchmark: ModuleType, float64: None, m: int) -> None:
    toy, tau = benchmark.Toy(0.3, 0.5 / 0.3, 1, m), torch.tensor([[0.7]])
    # (z_1, .., z_m, V, tau~) is linear in (z, noise).
    linear = torch.cat([torch.eye(m + 1)[:m], torch.ones(1, m + 1), torch.ones(1, m + 1)])
    linear[m, m] = 0
    covariance = linear @ torch.tensor([0.3**2] * m + [0.5**2]).diag() @ linear.T
    for index, found in ((0, toy.part(tau)), (m, toy.whole(tau))):
        gain = covariance[index, -1] / covariance[-1, -1]
        variance = covariance[index, index] - gain * covariance[index, -1]
        torch.testing.assert_close(found.mean, gain * tau)
        torch.testing.assert_close(found.variance, variance.expand(1, 1))
    pair = covariance[m:, m:]
    independent = MultivariateNormal(torch.zeros(2), pair.diagonal().diag())
    known = torch.distributions.kl_divergence(MultivariateNormal(torch.zeros(2), pair), independent)
    assert toy.information == pytest.approx(float(known))
    torch.testing.assert_close(toy.entropy, dist.Normal(torch.zeros(()), pair[0, 0].sqrt()).entropy())


def test_a_fitted_q_is_near_the_posterior(benchmark: ModuleType, float64: None) -> None:
    torch.manual_seed(0)
    toy = benchmark.Toy(0.3, 0.5 / 0.3, 4, 2)
    _, v, tau = toy.draw(20_000)
    found, exact = benchmark.fitted(v, tau)(tau), toy.whole(tau)
    assert float(torch.distributions.kl_divergence(exact, found).mean()) < 2e-3


def test_a_tiny_run_writes_its_file(
    benchmark: ModuleType, tmp_path: Path, check_results: Callable[[dict[str, Any]], None]
) -> None:
    out = tmp_path / "mutual_information.json"
    benchmark.main(benchmark.Arguments(out=out, seeds=(0, 1), draws=512, samples=8, dims=(1, 4), parts=(2,)))
    results = json.loads(out.read_text())
    check_results(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mutual_information.json", "mutual_information.png"]
    assert torch.get_default_dtype() == torch.float32

    def mean(method: str, task: str, **setting: Any) -> float:
        return summary(results["rows"], method, "estimate", task=task, **setting).mean

    for d in (1, 4):
        for noise in benchmark.NOISES:
            at = {"d": d, "noise": noise}
            truth = mean("truth", "gaussian", **at)
            assert truth == pytest.approx(d / 2 * math.log1p(2 / noise**2))
            for q in ("exact", "fitted"):
                method = "tied" if q == "exact" else "variational"
                assert mean(method, "gaussian", q=q, **at) == pytest.approx(truth, abs=0.2)
            assert mean("variational", "gaussian", q="scaled", **at) < truth + 0.1
            assert mean("infonce", "gaussian", **at) < min(truth, math.log(8)) + 0.1
            assert mean("leave_one_out", "gaussian", **at) > truth - 0.1
            assert mean("literal", "gaussian", q="narrow", **at) > truth
        assert mean("nonvariational", "gaussian", d=d, noise=1.0) > 2 * mean("truth", "gaussian", d=d, noise=1.0)
    for s in benchmark.SHRINKING:
        assert mean("nonvariational", "gaussian_shrinking", s=s) == pytest.approx(-0.6669 - math.log(s), abs=0.15)
        assert mean("truth", "gaussian_shrinking", s=s) == pytest.approx(0.5493, abs=1e-4)
    values = [mean("literal", "gaussian_deviation", factor=factor) for factor in benchmark.FACTORS]
    assert values == sorted(values, reverse=True)
