"""The programs of the README and of the method pages run as printed (with two updates instead of thousands)."""

import re
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/methods/hvil.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page)
    for block in blocks(page):
        pyro.clear_param_store()
        shortened = block.replace("steps=12_500", "steps=2, progress=False")
        exec(compile(shortened, page, "exec"), names)
    assert not list(tmp_path.iterdir()), "nothing is written unless asked for"
