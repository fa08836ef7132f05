"""Draw docs/images/rooms.png: the rooms of the package, one floor a room, and which rooms import from which.

python docs/draw_rooms.py [--out FILE.png]

It reads the sources and imports none of them. tests/test_package.py checks the rule by the same functions: imports go
down freely, never up.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "pyrocontrol"
# From the ground up. The modules of the root are private and begin with an underscore.
FLOORS = ("root", "models", "guides", "envs", "inference")
COLOURS = dict(zip(FLOORS, ("#e6e3dc", "#d6e4f0", "#dcebd5", "#f6e7c9", "#ecd8e6"), strict=True))


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Return the files of the package by module name, but for the package's own, which imports all rooms."""
    files = [path for path in root.glob("_*.py") if path.name != "__init__.py"]
    files += [path for room in FLOORS[1:] for path in (root / room).rglob("*.py")]
    named = {path: (PACKAGE, *path.relative_to(root).with_suffix("").parts) for path in sorted(files)}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in named.items()}


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[str, str | None]]:
    """Return the (module, name) pairs of the package that ``source``, the text of ``module``, imports in any way."""
    found: list[tuple[str, str | None]] = []
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [(target, alias.name) for alias in node.names]
    return [pair for pair in found if pair[0].split(".")[0] == PACKAGE]


def room(module: str) -> str:
    """Return the room of a module of the package."""
    name = module.partition(".")[2].partition(".")[0]
    return name if name in FLOORS else "root"


def rises(module: str, target: str, name: str | None) -> bool:
    """Return whether an import goes up, to a higher floor or to the whole package."""
    full = target if "." in target or name is None else f"{target}.{name}"  # from .. import guides
    return full == PACKAGE or FLOORS.index(room(full)) > FLOORS.index(room(module))


def folders(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return of each room its folders, and of each folder what it holds: its docstring, or its modules."""
    found: dict[str, dict[str, str]] = {floor: {} for floor in FLOORS}
    for module, path in sources(root).items():
        folder = path.parent.relative_to(root).as_posix()
        inside = found[room(module)]
        if "/" in folder:
            inside.setdefault(folder, "")
            if path.name == "__init__.py":
                inside[folder] = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        elif path.name != "__init__.py":
            inside[folder] = ", ".join(filter(None, (inside.get(folder), path.stem)))
    return found


def graph(root: Path = ROOT) -> set[tuple[str, str]]:
    """Return which rooms import from which others."""
    found = set()
    for module, path in sources(root).items():
        for target, name in imports(path.read_text(), module, path.name == "__init__.py"):
            full = target if "." in target or name is None else f"{target}.{name}"
            found.add((room(module), room(full)))
    return {(upper, lower) for upper, lower in found if upper != lower}


def content(root: Path = ROOT) -> str:
    """Return what the picture shows, in a line that is kept in the file."""
    return f"{[[*inside] for inside in folders(root).values()]} {sorted(graph(root))}"


def draw(path: Path, root: Path = ROOT) -> None:
    """Draw the rooms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # here, so that the tests of the rule need none of it

    inside, pairs = folders(root), graph(root)
    widest = max(len(boxes) for boxes in inside.values())
    high, gap, width, first = 1.0, 0.25, 2.2, 1.6
    wide = first + widest * width + 0.3
    figure, axes = plt.subplots(figsize=(0.7 * (wide + 0.42 * len(pairs)), 8.5), layout="constrained")
    base = {floor: number * (high + gap) for number, floor in enumerate(FLOORS)}
    for floor, bottom in base.items():
        axes.add_patch(plt.Rectangle((0, bottom), wide + 0.42 * len(pairs), high, color=COLOURS[floor], zorder=0))
        name = "root" if floor == "root" else f"{floor}/"
        axes.text(0.12, bottom + high / 2, name, va="center", weight="bold", fontsize=11)
        for number, (folder, holds) in enumerate(sorted(inside[floor].items())):
            left = first + number * width
            axes.add_patch(plt.Rectangle((left, bottom + 0.08), width - 0.12, high - 0.16, fc="white", ec="#777777"))
            title = f"{folder.partition('/')[2]}/" if "/" in folder else "*.py"
            axes.text(left + 0.08, bottom + high - 0.14, title, va="top", fontsize=8.5, weight="bold")
            text = textwrap.fill(holds, 27, max_lines=7, placeholder=" ...")
            axes.text(left + 0.08, bottom + high - 0.31, text, va="top", fontsize=6)
    for number, (upper, lower) in enumerate(sorted(pairs, key=lambda pair: [-FLOORS.index(end) for end in pair])):
        x, start, end = wide + 0.42 * number, base[upper] + high / 2, base[lower] + high / 2
        arrow = {"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, end), (x, start), arrowprops=arrow)
        axes.plot(x, start, "o", ms=4, color="#333333")
    top = base[FLOORS[-1]] + high
    axes.text(wide - 0.1, top + 0.06, "imports from a room below", fontsize=8, va="bottom")
    axes.set(xlim=(0, wide + 0.42 * len(pairs)), ylim=(0, top + 0.3))
    axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Description": content(root)})
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "rooms.png", help="the picture")
    draw(parser.parse_args().out)
