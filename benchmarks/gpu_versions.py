"""The part `versions` of benchmarks/gpu.py: versions, the device, the model's conversion, and the tests marked gpu."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu import ROOT

if TYPE_CHECKING:
    from gpu_parts import Rows

PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "triton", "datasets", "jsonargparse", "gguf")
OPTIONAL = ("liger-kernel", "cut-cross-entropy", "vllm")


def versions(options: argparse.Namespace, rows: Rows) -> None:
    """Write versions first: they explain whatever fails later."""
    rows.add("python", value=platform.python_version())
    for name in (*PACKAGES, *OPTIONAL):
        rows.add(name, value=version_of(name))
    is_gpu = torch.cuda.is_available()
    rows.add("device", value=torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine())
    if is_gpu:
        rows.add("CUDA, cuDNN", value=f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    if options.model and options.model.startswith("package:"):
        converted(options.model, rows)
    if options.device == "cuda":
        tests_marked_gpu(options, rows)


def version_of(name: str) -> str:
    """Return the installed version of a package, or that it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def converted(model: str, rows: Rows) -> None:
    """Convert the model of a package, which later parts then find."""
    try:
        from ippo_lightning.policies.packaged_models import local_model
        from ippo_lightning.policies.tokenizer_loading import load_tokenizer

        start = time.perf_counter()
        folder = local_model(model)
        seconds = time.perf_counter() - start
        tokenizer = load_tokenizer(folder, pretrained=folder, trust_remote_code=False, pad_token=None)
        ends = f"bos {tokenizer.bos_token}, eos {tokenizer.eos_token}, pad {tokenizer.pad_token}"
        rows.add("conversion of the model", value=ends, seconds=seconds)
    except Exception as error:  # the tests below do not need it
        rows.fail("conversion of the model", error)


def tests_marked_gpu(options: argparse.Namespace, rows: Rows) -> None:
    """Run the tests marked gpu, one row for the result and one for each failure."""
    # Only the files with such tests: collecting all of them takes longer than running these.
    files = [path for path in sorted(Path(ROOT, "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-rfE", *map(str, files)]
    left = max(options.deadline - time.monotonic(), 1.0)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    except subprocess.TimeoutExpired:
        lines = [f"not done after {left:.0f} s"]
    print(*lines, sep="\n")
    for number, line in enumerate(line for line in lines if line.startswith(("FAILED", "ERROR"))):
        rows.add(f"test that failed, {number + 1}", value=line[:200])
    rows.add("tests marked gpu", value=lines[-1].strip("= "))
