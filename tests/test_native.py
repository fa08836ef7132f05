"""C code is compiled once, for one user, and never loaded half; where it cannot be, a warning says so."""

import ctypes
import errno
import os
import re
import stat
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocontrol import _native

# Only POSIX systems have owners and modes, and a cc.
pytestmark = pytest.mark.skipif(os.name != "posix" or not os.path.exists("/usr/bin/cc"), reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A C file, an empty cache, and a compiler that notes each of its runs in ``compiled``."""
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7; }\n")
    use_compiler(monkeypatch, tmp_path, f"echo run >> {tmp_path}/compiled; exec /usr/bin/cc $*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYROCONTROL_NATIVE", raising=False)
    yield path
    _native.library.cache_clear()


def use_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let a shell script be the compiler."""
    (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cc").chmod(0o700)
    monkeypatch.setenv("CC", f"sh {folder}/cc")


def load_anew(source: Path) -> ctypes.CDLL | None:
    """What another process would get."""
    _native.library.cache_clear()
    return _native.library(source, "seven")


def kept(source: Path) -> list[Path]:
    return list((source.parent / "cache").rglob("*.so"))


def compiled(source: Path) -> int:
    log = source.with_name("compiled")
    return len(log.read_text().split()) if log.exists() else 0


def test_a_library_is_compiled_once_and_kept_in_a_private_folder(source: Path) -> None:
    for _ in range(2):
        library = load_anew(source)
        assert library is not None and library.seven() == 7
    (path,) = kept(source)
    assert compiled(source) == 1
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    source.write_text("int seven(void) { return 8 - 1; }\n")
    load_anew(source)
    assert compiled(source) == 2 and len(kept(source)) == 2


@pytest.mark.parametrize("fault", ["half", "empty", "other", "another's", "lacking"])
def test_a_library_that_is_not_whole_or_not_ours_is_compiled_again(source: Path, fault: str, tmp_path: Path) -> None:
    load_anew(source)
    (path,) = kept(source)
    content = path.read_bytes()
    wrong = {"half": content[: len(content) // 2], "empty": b"", "other": content + b"\0", "another's": b"of a Mac"}
    if fault == "lacking":  # without the function
        subprocess.run(
            ["/usr/bin/cc", "-Dseven=eight", source, "-o", tmp_path / "eight", "-shared", "-fPIC"], check=True
        )
        wrong[fault] = (tmp_path / "eight").read_bytes()
    path.unlink()  # not emptied: this process has it loaded
    if fault in ("another's", "lacking"):  # whole, by its own digest
        path = path.with_name(path.name.replace(path.stem[-16:], _native._digest(wrong[fault])))
    path.write_bytes(wrong[fault])
    library = load_anew(source)
    assert library is not None and library.seven() == 7
    assert compiled(source) == 2
    (path,) = kept(source)
    assert path.read_bytes() not in wrong.values()


@pytest.mark.parametrize("fault", ["mode", "owner", "file", "full", "not for programs"])
def test_a_folder_that_cannot_be_used_is_not_used(
    source: Path, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "pyrocontrol" / "native"
    if fault == "file":
        folder.parent.parent.touch()
    else:
        folder.mkdir(parents=True)
        folder.chmod(0o755 if fault == "mode" else 0o700)
    if fault == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    if fault == "full":
        whole = _native.writing

        def full(path: Path) -> Any:
            if folder in path.parents:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return whole(path)

        monkeypatch.setattr(_native, "writing", full)
    if fault == "not for programs":  # mounted with noexec
        load = ctypes.CDLL

        def refuse(path: str) -> ctypes.CDLL:
            if str(folder) in path:
                raise OSError(f"{path}: failed to map segment from shared object")
            return load(path)

        monkeypatch.setattr(ctypes, "CDLL", refuse)
    for count in (1, 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library = load_anew(source)
        (warning,) = caught
        assert re.match("native code is compiled in every process anew: .*cache", str(warning.message))
        assert library is not None and library.seven() == 7
        assert compiled(source) == count and (fault == "not for programs" or not kept(source))


def test_a_compiler_that_hangs_is_ended_with_what_it_started(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_compiler(monkeypatch, tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    monkeypatch.setattr(_native, "_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="seven.c is not compiled, slower code .* timed out after 0.5 seconds"):
        assert load_anew(source) is None
    assert time.monotonic() - begun < 10
    child = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


@pytest.mark.parametrize("fault", ["missing", "failing", "misspelt", "lacking", "unasked"])
def test_without_a_compiler_there_is_no_library(
    source: Path, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if fault == "missing":
        monkeypatch.setattr(_native.shutil, "which", lambda name: None)
    elif fault == "failing":
        use_compiler(monkeypatch, tmp_path, "echo no such flag >&2; exit 1")
    elif fault == "misspelt":
        monkeypatch.setenv("CC", "'")
    elif fault == "lacking":
        source.write_text("int eight(void) { return 8; }\n")
    else:
        monkeypatch.setenv("PYROCONTROL_NATIVE", "0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_anew(source) is None
        assert _native.library(source, "seven") is None
    said = {
        "missing": ["no C compiler was found"],
        "failing": ["no such flag"],
        "misspelt": ["CC=': No closing quotation"],
        "lacking": [".*/seven-.*so has no function seven"],
        "unasked": [],
    }[fault]
    for warning, reason in zip(caught, said, strict=True):
        expected = f"seven.c is not compiled, slower code takes its place: {reason}"
        assert re.fullmatch(expected, str(warning.message))
    assert fault == "lacking" or not kept(source)
