"""The package as a whole: how it imports, what its rooms may know of each other, how it is built."""

import doctest
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
from PIL import Image

import pyrocontrol
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
# What the picture of the rooms is drawn by.
rooms = load_script("docs/draw_rooms.py")
FLOORS, ROOMS = rooms.FLOORS, rooms.FLOORS[1:]
MODULES = {name: path.relative_to(ROOT) for name, path in rooms.sources().items()}


def run_python(*arguments: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


# Importing

HEAVY = "matplotlib tensorboard tyro numpyro jax mujoco lightning zuko pytest pybullet PIL imageio_ffmpeg"
HEAVY += " minari imitation h5py pyarrow av lightning_fabric submitit"


@pytest.mark.parametrize("validate", [True, False])
def test_import_is_light_and_leaves_distribution_validation_alone(validate: bool) -> None:
    # A finder that, like zuko, sets validation while one of the rooms is being imported.
    loaded = run_python(
        "-c",
        f"""
import sys
from torch.distributions import Distribution

class Meddler:
    def find_spec(self, name, path=None, target=None):
        if name == "pyrocontrol.models":
            Distribution.set_default_validate_args({not validate})
            Meddler.met = True

Distribution.set_default_validate_args({validate})
sys.meta_path.insert(0, Meddler())
import pyrocontrol
assert Meddler.met
assert Distribution._validate_args is {validate}
print(*{{name.split('.')[0] for name in sys.modules}})
""",
    )
    assert not {*HEAVY.split()} & {*loaded.split()}


def test_every_module_is_loaded_once() -> None:
    """A room that is loaded under a second name would register its environments and KL terms twice."""
    files = [Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    ours = [path for path in files if path == ROOT / "__init__.py" or path.parent in {ROOT / room for room in ROOMS}]
    assert ours and len(ours) == len(set(ours))


# The import rule of the rooms


def broken_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports in `source` that go up."""
    return [f"{module}: {pair}" for pair in rooms.imports(source, module, is_package) if rooms.rises(module, *pair)]


def test_rooms_import_only_what_they_may() -> None:
    for module, path in MODULES.items():
        source = (ROOT / path).read_text()
        assert not broken_imports(source, module, path.name == "__init__.py")
        without_examples = re.sub(r"^ *(>>>|\.\.\.).*", "", source, flags=re.M)
        assert "from pyrocontrol" not in without_examples, f"relative imports, please: {path}"


def test_import_rule_finds_what_breaks_it_and_allows_the_rest() -> None:
    for module, source in (
        ("models.a", "from ..guides import CallStackGuide"),
        ("models.a", "from ..guides.call_stack import CallStackGuide"),
        ("models.a", "from .. import envs"),
        ("models.a", "import pyrocontrol.inference"),
        ("models.a", "def f():\n    from ..inference import fit"),
        ("guides.a", "from ..envs import BubbleSortEnv"),
        ("guides.policies.a", "from ...envs.acting.collect import collect"),
        ("envs.a", "from ..inference import fit"),
        ("envs.data.a", "from ... import inference"),
        ("_a", "from .models import register"),
    ):
        assert broken_imports(source, f"pyrocontrol.{module}"), source
    for module, source in (
        ("models.a", "import torch\nfrom .process import Process"),
        ("guides.a", "from ..models.process import Process\nfrom .. import models"),
        ("envs.a", "from ..guides import Hierarchy"),
        ("inference.control.a", "from ..objectives.stepwise import StepwiseKL_ELBO"),
        ("inference.a", "from ..envs import collect\nfrom .._files import writing"),
        ("_a", "from ._files import writing"),
    ):
        assert not broken_imports(source, f"pyrocontrol.{module}"), source


def test_the_picture_of_the_rooms_is_of_today(tmp_path: Path) -> None:
    with Image.open(ROOT / "docs" / "images" / "rooms.png") as picture:
        assert picture.info["Description"] == rooms.content(), "python docs/draw_rooms.py draws it anew"
    for upper, lower in rooms.graph():
        assert FLOORS.index(upper) > FLOORS.index(lower)

    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "__init__.py").write_text('"""Small things."""\n')
    (tmp_path / "models" / "tiny" / "a.py").write_text("from ... import _b\nfrom ...envs import c\n")
    assert rooms.graph(tmp_path) == {("models", "root"), ("models", "envs")}
    assert rooms.folders(tmp_path)["models"] == {"models/tiny": "Small things."}
    rooms.draw(tmp_path / "out" / "rooms.png", tmp_path)
    with Image.open(tmp_path / "out" / "rooms.png") as picture:
        assert picture.info["Description"] == rooms.content(tmp_path)


# What is public


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist_and_are_documented(room: str) -> None:
    module = getattr(pyrocontrol, room)
    assert module.__doc__ and module.__all__
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue  # a constant
        text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
        assert text, f"{room}.{name} has no docstring"
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                documented = inspect.getdoc(getattr(thing, member)) or f"{member}:" in text
                assert documented, f"{room}.{name}.{member} has no docstring"


@pytest.mark.parametrize("room", FLOORS)
def test_docstring_examples(room: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST
    for name in ("pyrocontrol", *MODULES):
        if room == rooms.room(name):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            assert not doctest.testmod(importlib.import_module(name), optionflags=flags).failed, (
                f"the examples of {name}"
            )


# Results


def test_results_have_the_common_form(check_results: Callable[[dict[str, Any]], None]) -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        results = json.loads(path.read_text())
        assert results["name"] == path.stem
        check_results(results)


ROW = {
    "method": "hvil",
    "task": "bubble_sort",
    "setting": {"demos": 40},
    "seed": 0,
    "metric": "exact_match",
    "value": 0.97,
    "seconds": 81.5,
}
RESULTS = {"name": "a", "command": "b", "revision": "c", "machine": "d", "versions": {"torch": "2.13.0"}}


def test_common_form_of_results_is_checked(check_results: Callable[[dict[str, Any]], None]) -> None:
    check_results(RESULTS | {"rows": [ROW, ROW | {"seed": 1}]})
    for rows in (
        [],
        [ROW, ROW],
        [{key: value for key, value in ROW.items() if key != "seconds"}],
        [ROW | {"value": "0.97"}],
        [ROW | {"setting": 40}],
        [ROW | {"note": "two"}],
    ):
        with pytest.raises(AssertionError):
            check_results(RESULTS | {"rows": rows})
            pytest.fail(f"taken: {rows}")


# Building


def test_extras_are_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {
        "mujoco",
        "dm-control",
        "robotics",
        "metaworld",
        "bullet",
        "data",
        "flows",
        "numpyro",
        "scale",
        "docs",
        "test",
        "all",
    }
    assert extras["all"][0] == f"pyrocontrol-ppl[{','.join(name for name in extras if name != 'all')}]"


def test_packages_are_all_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == {"pyrocontrol", *folders}


def test_wheel_of_the_sdist_imports_and_holds_only_the_rooms(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "*.egg-info", "_build", "out", "runs", "shared"
    )
    shutil.copytree(ROOT, tree, ignore=ignore)
    run_python("-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tree))
    (sdist,) = (tmp_path / "dist").glob("pyrocontrol_ppl-*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("pyrocontrol_ppl-*.whl")
    assert sdist.stat().st_size < 2**20
    assert wheel.name == f"pyrocontrol_ppl-{pyrocontrol.__version__}-py3-none-any.whl"

    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    sources = {path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.c")}
    assert files == {f"pyrocontrol/{path}" for path in (*MODULES.values(), *sources, "__init__.py", "py.typed")}

    where = run_python("-c", "import pyrocontrol; print(pyrocontrol.__file__)", PYTHONPATH=str(tmp_path / "site"))
    assert Path(where.strip()) == tmp_path / "site" / "pyrocontrol" / "__init__.py"
