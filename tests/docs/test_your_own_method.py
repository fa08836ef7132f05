"""The page "Your own method in thirty minutes" does what it says, and is the example's program."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest

from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your-own-method.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def definitions(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, ast.unparse(node)


def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        with pyro.validation_enabled(True):  # put back what the page turns off
            exec(compile(block, "your-own-method.md", "exec"), names)
    scores = names["pc"].inference.segmentation_scores(names["found"], names["labels"])
    assert scores["accuracy"] > 0.97 and scores["boundary_f1"] > 0.95
    assert names["exact"] - 1 < names["bound"] < names["exact"] + 0.2  # of 16 samples a mean of 400
    assert not list(tmp_path.iterdir())
    # What the page says that can be exchanged.
    model, demos, guides = names["model"], names["held_out"][:5], names["pc"].guides
    for encoder in (guides.TransformerEncoder(4, 32), guides.LSTMEncoder(4, 64)):
        guide = names["Reader"](demos, 4)
        guide.encoder = encoder
        assert math.isfinite(pyro.infer.Trace_ELBO(num_particles=4).loss(model, guide, demos))


def test_the_page_is_the_program_of_the_example() -> None:
    theirs = dict(definitions((ROOT / "examples" / "segment_skills.py").read_text()))
    mine = dict(pair for block in BLOCKS for pair in definitions(block))
    assert mine.keys() >= {"Skills", "Hand", "SkillsFound", "Reader", "chain"}
    assert mine == {name: theirs[name] for name in mine}


def test_the_page_has_the_numbers_of_the_results() -> None:
    benchmark = load_script("benchmarks/segmentation.py")
    assert benchmark.table(benchmark.read_rows(ROOT / "benchmarks" / "results" / "segmentation.json")) in PAGE
