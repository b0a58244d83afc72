"""A copy of the package ``tunnel`` whose pure, hot modules are compiled by mypyc: ``python deploy/compile.py FOLDER``.

The source tree stays what it is, and what everybody works with: nothing compiled ever lies beside a source file there,
where it would go on hiding it after a change. Put FOLDER before the source tree on PYTHONPATH (and set PYTHONSAFEPATH)
to use the copy. It is made anew only when a source, the compiler or Python has changed. Needs mypy, setuptools and a C
compiler; where one of them is missing it says so and exits with 3: all works without, and slower.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "tunnel"
CANNOT: Final = 3
"""Exit status where there is no compiler; other faults are 1."""
COMPILED: Final = ("protocol/*.py", "http/*.py", "websocket/codec.py")
LEFT_OUT: Final = {
    "__init__.py": "only imports",
    "http/errors.py": "a class of errors here is a RuntimeError, which mypyc cannot inherit from",
    "http/limits.py": "somebody asks for its __slots__, which a compiled class has not",
}
STAMP: Final = "compiled.txt"
_SECONDS: Final = 600.0
# mypyc reads its arguments as mypy does. The configuration of the project is for the whole tree, Django included.
_BUILD: Final = """\
import sys
from mypyc.build import mypycify
from setuptools import setup
level, *modules = sys.argv[1:]
options = ["--config-file=", "--ignore-missing-imports", "--strict-bytes"]
made = mypycify([*options, *modules], opt_level=level, debug_level="0", group_name="tunnel_core")
setup(name="tunnel-core", packages=[], ext_modules=made, script_args=["-q", "build_ext", "--inplace"])
"""


class CannotCompileError(Exception):
    """Something that compiling needs is not on this machine."""


CONTRACT = tuple(
    f"contract/{name}.py" for name in ("__init__", "authority", "messages", "names", "reading", "settings")
)


def modules() -> list[str]:
    """The modules to compile, as paths below the package."""
    found = {path.relative_to(PACKAGE).as_posix() for glob in COMPILED for path in PACKAGE.glob(glob)}
    return sorted(name for name in found if name not in LEFT_OUT and not name.endswith("__init__.py"))


def stamp(level: str) -> str:
    """What the compiled part depends on: its sources and what it imports, this program, the compilers."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in (*modules(), *(name for name in LEFT_OUT if "/" in name), *CONTRACT):
        digest.update(f"{name}\n".encode() + (PACKAGE / name).read_bytes())
    return f"{digest.hexdigest()} {_versions()} -O{level}\n"


def _versions() -> str:
    try:
        return f"mypy-{version('mypy')} setuptools-{version('setuptools')} {sysconfig.get_config_var('SOABI')}"
    except PackageNotFoundError as missing:
        raise CannotCompileError(f"the package {missing.name} is not installed") from None


def compiler() -> str:
    """The C compiler that setuptools will call. Raises CannotCompileError."""
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if (found := shutil.which(words[0])) is None:
        raise CannotCompileError(f"there is no C compiler ({words[0]}) on the PATH")
    return found


def compile_into(target: Path, level: str) -> bool:
    """Have the copy in `target`/tunnel; whether it had to be made. Raises CannotCompileError, CalledProcessError."""
    compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        wanted = stamp(level)
        mark = target / STAMP
        if mark.exists() and mark.read_text() == wanted:
            _refresh(target / "tunnel")
            return False
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
            fresh = Path(folder) / "fresh"
            shutil.copytree(PACKAGE, fresh / "tunnel", ignore=shutil.ignore_patterns("__pycache__"))
            command = [sys.executable, "-P", "-c", _BUILD, level, *(f"tunnel/{name}" for name in modules())]
            subprocess.run(command, cwd=fresh, check=True, timeout=_SECONDS)
            shutil.rmtree(fresh / "build", ignore_errors=True)
            (fresh / STAMP).write_text(wanted)
            if target.exists():
                target.rename(Path(folder) / "old")
            fresh.rename(target)
        return True


def _refresh(copy: Path) -> None:
    """Bring the sources of the copy up to date. Those of compiled modules have not changed."""
    sources = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    for gone in {path.relative_to(copy) for path in copy.rglob("*.py")} - sources:
        (copy / gone).unlink()
    for name in sources:
        text, there = (PACKAGE / name).read_bytes(), copy / name
        if not there.exists() or there.read_bytes() != text:
            there.parent.mkdir(parents=True, exist_ok=True)
            fresh = there.with_suffix(".fresh")
            fresh.write_bytes(text)
            fresh.rename(there)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A copy of the package tunnel with a compiled core.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--level", default="3", help="of optimization (gcc's -O); 0 is built in a third of the time")
    given = parser.parse_args(arguments)
    try:
        made = compile_into(given.folder, given.level)
    except CannotCompileError as error:
        sys.stderr.write(f"visiona: NOT COMPILED, the tunnel stays pure Python: {error}\n")
        return CANNOT
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"visiona: NOT COMPILED, the compiler failed with {error.returncode}\n")
        return 1
    sys.stdout.write(f"visiona: the tunnel's core is compiled in {given.folder}{'' if made else ' (as it was)'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
