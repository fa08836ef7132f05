"""Without noise: random small models, whose enumerated loss and gradient the estimator has in expectation."""

from __future__ import annotations

import os

import pytest

import random_models
from pyrocontrol.inference import StepwiseKL_ELBO

pytestmark = pytest.mark.usefixtures("float64")

# More of them: python tests/helpers/random_models.py --count 10000
COUNT = int(os.environ.get("RANDOM_MODELS", "200"))
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_the_expectation_is_the_enumerated_one(part: int) -> None:
    for seed in range(part, COUNT, PARTS):
        loss, gradient = random_models.error_of(seed)
        assert max(loss, gradient) < 1e-8, f"seed {seed}: loss off by {loss:.1e}, gradient by {gradient:.1e}"


def test_random_models_tell_wrong_estimators() -> None:
    """No score at all, and plates taken at their word."""
    without = [random_models.error_of(seed, StepwiseKL_ELBO(score="none"))[1] for seed in range(6)]
    assert sum(error > 1e-3 for error in without) >= 4

    class AtTheirWord(StepwiseKL_ELBO):
        def _plates(self, *args: object) -> dict:  # type: ignore[override, type-arg]
            return {}

    assert any(random_models.error_of(seed, AtTheirWord())[1] > 1e-3 for seed in range(12))
