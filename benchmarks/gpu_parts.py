"""The parts of benchmarks/gpu.py, each a process of its own: `python benchmarks/gpu_parts.py PART --rows FILE`."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

from gpu import LIMITS, add_row

MODULES = {
    "versions": "gpu_versions",
    "kernels": "gpu_kernels",
    "nonfinite": "gpu_nonfinite",
    "shape": "gpu_shapes",
    "vocabulary": "gpu_shapes",
    "samplers": "gpu_samplers",
    "sft": "gpu_runs",
    "word_problems": "gpu_runs",
}
"""The file with the function of each part: a part imports only what it needs, so a package that is missing ends one."""


class Rows:
    """Writes rows of one part as they come.

    Args:
        part: its name.
        file: of all rows.
    """

    def __init__(self, part: str, file: Path) -> None:
        self.part = part
        self.file = file

    def add(self, what: str, **fields: Any) -> None:
        """Write one row, numbers rounded; a number that is NaN is left out."""
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in fields.items()}
        add_row(self.file, part=self.part, what=what, **{name: v for name, v in rounded.items() if v == v})

    def fail(self, what: str, error: BaseException) -> None:
        """Write what went wrong in place of a number."""
        said = str(error).strip().splitlines()
        self.add(what, value=f"{type(error).__name__}: {said[0][:160] if said else ''}")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(LIMITS))
    parser.add_argument("--rows", required=True, help="file that rows are appended to")
    parser.add_argument("--scratch", required=True, help="folder for runs and models")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which a part ends by itself")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.deadline = time.monotonic() + options.seconds
    rows = Rows(options.part, Path(options.rows).resolve())
    start = time.monotonic()
    getattr(importlib.import_module(MODULES[options.part]), options.part)(options, rows)
    rows.add("whole part", seconds=time.monotonic() - start)


if __name__ == "__main__":
    main()
