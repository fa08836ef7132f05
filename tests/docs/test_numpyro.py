"""The page "The same programs in NumPyro" does what it says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "numpyro.md").read_text()


def test_the_blocks_run_in_order() -> None:
    pytest.importorskip("numpyro")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "numpyro.md", "exec"), names)
    assert names["found"].losses.shape == (1, 20)
    weight = names["found"].params[0]["program$$$process.choose.weights.0"]
    assert (names["program"].process.choose.weights[0].detach().numpy() == weight).all()
    check_posterior(names["samples"])


def check_posterior(samples: dict[str, Any]) -> None:
    """Compare with the exact posterior of what the traces tell of: the logit of a return after an action.

    It is a sum of two differences of weights, whose prior variance is 4. Two steps return and one might have; the first
    action of a loop is forced.
    """
    held, bias = samples["program$$$process.choose.weights.0"][:, 0], samples["program$$$process.choose.biases.0"][:, 0]
    after_action = (
        held[:, 1 + 1 + 1] + bias
    )  # inputs: the observation, the counter, and which choice was last, from 0 on
    found = np.asarray(after_action[:, 2] - after_action[:, 1])
    grid = np.linspace(-12, 12, 4001)
    log_density = -(grid**2) / 8 - 2 * np.log1p(np.exp(-grid)) - np.log1p(np.exp(grid))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = (grid * density).sum()
    deviation = np.sqrt((grid**2 * density).sum() - mean**2)
    assert set(samples) == {f"program$$$process.choose.{name}.0" for name in ("weights", "biases")}
    assert abs(found.mean() - mean) < 0.25
    assert abs(found.std() - deviation) < 0.2
