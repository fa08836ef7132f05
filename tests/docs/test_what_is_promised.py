"""The page "What is promised" says what its program finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "what-is-promised.md").read_text()


SOURCE = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))


def gradients(source: str) -> dict[str, torch.Tensor]:
    names: dict[str, Any] = {}
    exec(compile(source, "what-is-promised.md", "exec"), names)
    return names["gradients"]


def test_the_estimators_have_the_gradients_of_the_table() -> None:
    found = gradients(SOURCE)
    for name, gradient in found.items():
        assert f"| {name} | {gradient[0]:.4f} | {gradient[1]:.4f} |" in PAGE
    torch.testing.assert_close(found["StepwiseKL_ELBO"], found["exact"])
    assert not torch.allclose(found["Trace_ELBO"], found["exact"], atol=0.05)


def test_without_the_path_through_the_site_outside_all_are_exact() -> None:
    assert SOURCE.count("z.sum(-1)") == 2
    found = gradients(SOURCE.replace("z.sum(-1)", "torch.tensor(0.0)"))
    for gradient in found.values():
        torch.testing.assert_close(gradient, found["exact"])
