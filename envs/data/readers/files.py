"""What all readers of files share: errors that name the file, packages that may be missing, choosing observations.

A file may be damaged, of another format, or made by somebody who means harm. So nothing is unpickled, nothing outside
of the file is read, and what a file says of its own size is not believed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...._limits import Budget
from . import walk

__all__ = ["PATH", "begins_like", "chosen", "existing", "imported", "naming", "verify_apart"]

PATH = str | os.PathLike[str]

_BEGINNINGS = {
    b"PK": "a zip file, as .npz files are",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a parquet file",
    b"\x93NUMPY": "a single array, as np.save writes",
    b"\x80": "a pickle",
}


@contextmanager
def naming(path: PATH | None) -> Iterator[None]:
    """Turn whatever goes wrong in the block into one ValueError that begins with the file's name.

    On damaged files zipfile, numpy, h5py and pyarrow raise a dozen kinds. What is missing, a file or a package, stays a
    FileNotFoundError or an ImportError.

    Args:
        path: of the file; with None, errors pass as they are.
    """
    try:
        yield
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        if path is None:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{os.fspath(path)}: {text}") from error


def existing(path: PATH, folder: bool = False) -> Path:
    """Return the path of a file that holds something, or of a folder.

    Raises:
        TypeError: if it is given by something else than a path.
        FileNotFoundError: if there is none.
        ValueError: if it is empty, or the one in place of the other.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a {'folder' if folder else 'file'} is given by its path, got {path!r}")
    found, kind = Path(path), "folder" if folder else "file"
    if not found.exists():
        raise FileNotFoundError(f"no {kind} {found}")
    if not (found.is_dir() if folder else found.is_file()):
        raise ValueError(f"{found}: it is no {kind}")
    if not folder and found.stat().st_size == 0:
        raise ValueError(f"{found}: the file is empty")
    return found


def begins_like(path: Path) -> str:
    """What the first bytes of a file say it is, for an error; empty where they say nothing."""
    with open(path, "rb") as file:
        head = file.read(8)
    kinds = [kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)]
    return f": it begins like {kinds[0]}" if kinds else ""


def verify_apart(kind: str, paths: Sequence[Path]) -> None:
    """Look at files that are about to be read, in a process of its own: see `walk`.

    It takes a third of a second, and at most `_SECONDS` and some more for large files.

    Args:
        kind: ``"hdf5"`` or ``"parquet"``.
        paths: of the files, which are there.

    Raises:
        ValueError: naming the first that is damaged, is not whole by itself, or claims to hold more than it may.
    """
    for path, found in zip(paths, _walked(kind, paths), strict=True):
        with naming(path):
            if isinstance(found, str):
                raise ValueError(found)
            Budget(path.stat().st_size).take(found)


_SECONDS, _BYTES_A_SECOND, _FILES_A_SECOND = 6, 5e6, 5  # which it may take: names are a small part of most files


def _walked(kind: str, paths: Sequence[Path]) -> list[int | str]:
    """How many bytes each file becomes, or what is wrong with it."""
    size = sum(path.stat().st_size for path in paths)
    command = [sys.executable or "", "-P", walk.__file__, kind, str(2**32 + 4 * size)]
    given, seconds = json.dumps([str(path.absolute()) for path in paths]), _SECONDS + size / _BYTES_A_SECOND
    seconds += (len(paths) - 1) / _FILES_A_SECOND
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=seconds)
        lines, fault = done.stdout, "what looks at it is ended by it" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        lines, fault = error.stdout or b"", "what looks at it goes round in circles"
    except OSError:  # no other Python can be started
        lines = b""
    ready, *rest = lines.splitlines() or [b""]
    if ready != b"ready":  # it is no fault of the files
        return [walk.found(getattr(walk, f"bytes_of_{kind}"), str(path)) for path in paths]
    found: list[int | str] = [json.loads(line) for line in rest]
    return found + [f"it is damaged: {fault}"] * (len(paths) - len(found))


_INSTALL = {"minari": "'minari[hdf5]'", "imitation": "--no-deps imitation seals", "PIL": "pillow"}


def imported(module: str) -> Any:
    """Import what only a reader needs.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"{name} is not installed: pip install {_INSTALL.get(name, name)}") from error


def chosen(observations: str | Iterable[str], there: Mapping[str, Any]) -> Any:
    """The observations that are asked for: one for a name, a dict of them for several names.

    Raises:
        TypeError: for something else than names.
        ValueError: naming those that are not there, and those that are.
    """
    given: Any = [observations] if isinstance(observations, str) else observations
    names = [*given] if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"observations are chosen by their names, got {observations!r}")
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"there is no {missing[0]!r}: there are {sorted(there)}")
    if not names:
        raise ValueError(f"nothing is chosen: there are {sorted(there)}")
    return there[names[0]] if isinstance(observations, str) else {name: there[name] for name in names}
