"""Make the environment of the tests with vLLM once: ``python3 .ci/vllm_environment.py .venv-vllm``.

Called by ``make test-vllm``. vLLM pins its own versions of torch and transformers, so it gets an environment of its
own, with the project in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import environment

PACKAGES = environment.REPOSITORY / ".ci" / "vllm.txt"
PYTHON = (3, 11)
"""The versions in the file have wheels for this one."""


def main(folder: str) -> None:
    """Make the environment in `folder` unless it is there already and the list of packages has not changed."""
    if sys.version_info[:2] != PYTHON or sys.platform != "linux":
        found = f"Python {sys.version.split()[0]} on {sys.platform}"
        sys.exit(f"setup: the tests with vLLM need Python 3.11 on Linux, this is {found}; set PYTHON=...")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stamp = target / ".installed"
    with environment._alone(target / ".lock"):
        if stamp.exists() and stamp.stat().st_mtime >= PACKAGES.stat().st_mtime:
            return
        stamp.unlink(missing_ok=True)
        environment._make_links()
        _install(target)
        stamp.touch()
    print(f"setup: {target} is ready")


def _install(target: Path) -> None:
    python = target / "bin/python"
    if not python.exists():
        print(f"setup: making {target} with Python {sys.version.split()[0]}", flush=True)
        environment._run([sys.executable, "-m", "venv", str(target)], "needs the venv module")
    pip = [str(python.absolute()), "-m", "pip", "install", "-qq", "--no-deps"]
    print("setup: installing vLLM for a CPU and the project (some minutes the first time)", flush=True)
    # torch's builds for a CPU lie in an index of their own, which is asked for torch alone, and once: a machine that
    # does not reach it has such a build in its own index.
    index = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
    once = ["--retries", "0", "--timeout", "15", "--extra-index-url", index]
    torch = next(line for line in PACKAGES.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    environment._run([*pip, *once, torch], "see pip's words above")
    environment._run([*pip, "--requirement", str(PACKAGES)], "see pip's words above")
    build = ["--editable", str(environment.REPOSITORY)]
    environment._run([*pip, *build], "see pip's words above")


if __name__ == "__main__":
    main(sys.argv[1])
