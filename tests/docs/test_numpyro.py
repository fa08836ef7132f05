"""The page "The same programs in NumPyro" does what it says."""

import re
from pathlib import Path
from typing import Any

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
