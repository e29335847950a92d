"""Make the virtual environment once: ``python3 .ci/environment.py .venv``.

Called by ``make setup``. Two runs at a time wait for each other, an interrupted run is completed by the next one, and
only the standard library is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "constraints.txt")
OLDEST_PYTHON = (3, 10)
LINKED = ("callbacks", "experiments")
"""Folders at the top that are packages inside `ippo_lightning`."""


def main(folder: str) -> None:
    """Make the environment in `folder` unless it is there already and nothing it is made from has changed."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"setup: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=...")
    environment = Path(folder)
    environment.mkdir(parents=True, exist_ok=True)
    stamp = environment / ".installed"
    with _alone(environment / ".lock"):
        if _is_fresh(stamp):
            return
        stamp.unlink(missing_ok=True)
        _make_links()
        _install(environment)
        stamp.touch()
    activate = environment / ("Scripts/activate" if os.name == "nt" else "bin/activate")
    print(f"setup: {environment} is ready; next: source {activate}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system drops by itself if this process dies."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; there two runs at a time are the caller's business
        yield
        return
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: waiting for another setup of the same environment", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_fresh(stamp: Path) -> bool:
    if not stamp.exists():
        return False
    newest = max((REPOSITORY / name).stat().st_mtime for name in INPUTS)
    return stamp.stat().st_mtime >= newest


def _make_links() -> None:
    """Make the links that type checkers and `ippo` in other folders need, if they are missing.

    A checkout on a system without links has text files in their places, which stay.
    """
    for name in LINKED:
        link = REPOSITORY / "ippo_lightning" / name
        if not link.is_symlink() and not link.exists():
            link.symlink_to(Path("..") / name, target_is_directory=True)


def _install(environment: Path) -> None:
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"setup: making {environment} with Python {sys.version.split()[0]}", flush=True)
        _run(
            [sys.executable, "-m", "venv", str(environment)], "needs the venv module (Debian: apt install python3-venv)"
        )
    pip = [
        str(python.absolute()),
        "-m",
        "pip",
        "install",
        "-qq",  # errors only: an index without hashes or metadata makes it warn about every package
        "--constraint",
        str(REPOSITORY / "constraints.txt"),
    ]
    index = os.environ.get("TORCH_INDEX")
    print("setup: installing torch and the build tools", flush=True)
    # Torch comes first and alone, so that one exact version, and with it one build, is settled before anything asks.
    _run(
        [*pip, *(["--extra-index-url", index] if index else []), "torch", "setuptools", "wheel"],
        "see pip's words above",
    )
    print("setup: installing the project and its tools (some minutes the first time)", flush=True)
    _run([*pip, "--no-build-isolation", "--editable", f"{REPOSITORY}[dev,docs,control]"], "see pip's words above")


def _run(command: list[str], remedy: str) -> None:
    """Run one step with its output shown; leave with one line if it fails."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"setup: `{' '.join(command[1:4])} ...` failed with code {code}: {remedy}")


if __name__ == "__main__":
    main(sys.argv[1])
