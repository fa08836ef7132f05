"""The programs of the README and of the method pages run as printed (with two updates instead of thousands)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/methods/hvil.md", "docs/methods/imitation.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page)
    for block in blocks(page):
        shortened = block.replace("steps=12_500", "steps=2, progress=False")
        exec(compile(shortened, page, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}, "written elsewhere than asked for"
