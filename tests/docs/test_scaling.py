"""The program of docs/scaling.md, run as that page says, with fewer steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import ROOT


def test_the_program_of_the_page_trains_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "scaling.md").read_text(), re.M | re.S)
    for long, short in (("(160, 0)", "(6, 0, max_length=3)"), ("steps=1000", "steps=2"), ("size=64", "size=4")):
        assert program.count(long) == 1
        program = program.replace(long, short)
    (tmp_path / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(file.name for file in (tmp_path / "out" / "two").iterdir())
    assert found == ["checkpoint.pt", "program.pt", "tensorboard"]
