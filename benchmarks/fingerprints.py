"""What runs compute, as hashes: taken before a reorganisation and after it, the two must be equal.

Each case is a run of three iterations in a process of its own. Its fingerprint has one hash of the trainable
parameters, and one hash of the values of each metric. Seconds and memory are left out. The same machine, the same
versions and one thread give the same hashes.

python benchmarks/fingerprints.py take before.json
python benchmarks/fingerprints.py take after.json
python benchmarks/fingerprints.py compare before.json after.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("IPPO_DATA", REPOSITORY.parent / "shared" / "data"))
ITERATIONS = 3
UNSTABLE = ("time/", "memory/", "seconds", "max_iterations")
"""Beginnings of the names of metrics that no two runs share."""
RENAMED: tuple[tuple[str, str], ...] = (("^ppo/", "update/"), ("_share$", "_fraction"))
"""Pattern and replacement for names of metrics that have changed since; applied to the first file of `compare`."""

PPO = ("--task", "arithmetic")
POLICY = "--model.init_args.policy.init_args"
RANK = (f"{POLICY}.lora.r", "4")
TWO_RANKS = ("--fabric.devices", "2", "--data.init_args.batch_size", "32")
GSM8K = ("--data.init_args.task.init_args.path", str(DATA / "gsm8k"))


def ippo(method: str) -> tuple[str, ...]:
    """Return the words of the arithmetic task with a method."""
    return (*PPO, "--method", method)


CASES: Mapping[str, tuple[str, ...]] = {
    "sft": ("--base", "sft", *PPO),
    "ppo": PPO,
    "ippo": ippo("ippo"),
    "fast": ippo("fast"),
    "paper": ippo("paper"),
    "filter_only": ippo("filter_only"),
    "random": ippo("random"),
    "advantage_sign": ippo("advantage_sign"),
    "reward": ippo("reward"),
    "token_mean": (*ippo("paper"), "--model.init_args.update.loss_reduction", "token_mean"),
    "value_on_dropped": (
        *ippo("paper"),
        "--model.init_args.update.train_value_on_dropped",
        "true",
        "--model.init_args.entropy_coef",
        "0.01",
    ),
    "same_steps": (*ippo("ippo"), "--model.init_args.update.steps_after_filtering", "same"),
    "lora": (*ippo("ippo"), "--model", "lora", *RANK),
    "nf4": (*ippo("paper"), "--model", "nf4", *RANK),
    "separate_critic": (*ippo("paper"), f"{POLICY}.value", "separate"),
    "ddp": (*ippo("ippo"), *TWO_RANKS, "--fabric.strategy", "ddp"),
    "fsdp2": (*ippo("ippo"), *TWO_RANKS, "--fabric.strategy", "fsdp2"),
    "gsm8k_sft": (
        *("--base", "sft", "--task", "gsm8k"),
        *GSM8K,
        f"{POLICY}.tokenizer.init_args.path",
        str(DATA / "gsm8k"),
    ),
}
"""Name of a case to the words after `ippo fit`."""
IN_TRAINER: Mapping[str, tuple[str, ...]] = {"trainer_ppo": PPO, "trainer_ippo": ippo("ippo")}
"""The same under `lightning.Trainer`."""


def take(names: Iterable[str]) -> dict[str, Any]:
    """Run cases and return their fingerprints.

    Args:
        names: of the cases; those whose data is not there are left out.
    """
    found: dict[str, Any] = {}
    for name in names:
        if name.startswith("gsm8k") and not (DATA / "gsm8k").is_dir():
            print(f"{name}: left out, no {DATA / 'gsm8k'}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = in_trainer(name) if name in IN_TRAINER else fitted(name, Path(folder) / "run")
        print(f"{name}: {found[name]['parameters']}", flush=True)
    return found


def fitted(name: str, folder: Path) -> dict[str, Any]:
    """Run `ippo fit` and return the fingerprint of what it left."""
    words = [*CASES[name], "--loop.run_dir", str(folder), "--loop.max_iterations", str(ITERATIONS)]
    words += ["--loop.evaluate_every_n_iterations", str(ITERATIONS), "--loop.evaluate_first", "false"]
    words += ["--loop.test_at_end", "false", "--loop.save_model", "false"]
    words += ["--data.init_args.task.init_args.num_validation", "32"]
    run(["-m", "ippo_lightning.cli", "fit", *words])
    state = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    rows = {file: read_rows(folder / f"{file}.jsonl") for file in ("history", "evaluations")}
    return {"parameters": hash_of_tensors(state["parameters"]), **{f: hash_of_rows(r) for f, r in rows.items()}}


def in_trainer(name: str) -> dict[str, Any]:
    """Run a case under `lightning.Trainer` in a process of its own, and return its fingerprint."""
    lines = run([__file__, "trainer", name]).strip().splitlines()
    return dict(json.loads(lines[-1]))


def train(name: str) -> dict[str, Any]:
    """Run a case under `lightning.Trainer` in this process."""
    from lightning import Callback, Trainer, seed_everything

    from ippo_lightning.cli.building import build_objects
    from ippo_lightning.cli.command_line import read_command_line
    from ippo_lightning.cli.parsers import build_parser

    class Kept(Callback):
        rows: list[dict[str, float]] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.rows.append({"iteration": batch_idx, **outputs})

    parser = build_parser()
    settings = parser.parse_args(read_command_line(["fit", *IN_TRAINER[name]]).words)
    seed_everything(settings.fit.seed_everything, verbose=False)
    objects = build_objects(parser, settings)
    kept = Kept()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            max_epochs=1,
            limit_train_batches=ITERATIONS,
            limit_val_batches=0,
            default_root_dir=folder,
            callbacks=[*objects.callbacks, kept],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(objects.model, datamodule=objects.data)
    parameters = {name: p.detach() for name, p in objects.model.named_parameters() if p.requires_grad}
    return {"parameters": hash_of_tensors(parameters), "history": hash_of_rows(kept.rows)}


def run(words: list[str]) -> str:
    """Run Python on one thread from the checkout; return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "IPPO_TRACEBACK": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def hash_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of the values in the order of the names; the names themselves may change."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return a hash for each metric of its values in all rows."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    stable = {name: values for name, values in columns.items() if not name.startswith(UNSTABLE)}
    return {
        name: hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] for name, values in sorted(stable.items())
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Print a table of both; return the number of cases that differ.

    Args:
        before: what `take` returned earlier; its metrics go through `RENAMED`.
        after: what it returns now.
    """
    differing = 0
    print(f"{'case':18} {'before':18} {'after':18} metrics")
    for name in before:
        if name not in after:
            print(f"{name:18} {before[name]['parameters']:18} {'missing':18}")
            differing += 1
            continue
        old, new = before[name], after[name]
        notes = [
            note for file in ("history", "evaluations") for note in differences(old.get(file, {}), new.get(file, {}))
        ]
        same = old["parameters"] == new["parameters"] and not notes
        differing += not same
        print(f"{name:18} {old['parameters']:18} {new['parameters']:18} {'equal' if not notes else '; '.join(notes)}")
    return differing


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return one remark for each metric that is gone, new, or has other values."""
    renamed = {}
    for name, value in old.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    remarks = [f"-{name}" for name in renamed if name not in new]
    remarks += [f"+{name}" for name in new if name not in renamed]
    return remarks + [f"{name} differs" for name in renamed if name in new and renamed[name] != new[name]]


def main() -> int:
    """Read the command line and act."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("take")
    taking.add_argument("output", type=Path)
    taking.add_argument("cases", nargs="*", default=[*CASES, *IN_TRAINER])
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    commands.add_parser("trainer").add_argument("case")
    chosen = parser.parse_args()
    if chosen.command == "take":
        chosen.output.write_text(json.dumps(take(chosen.cases), indent=2) + "\n", encoding="utf-8")
        return 0
    if chosen.command == "trainer":
        print(json.dumps(train(chosen.case)))
        return 0
    return compare(*(json.loads(path.read_text(encoding="utf-8")) for path in (chosen.before, chosen.after)))


if __name__ == "__main__":
    sys.exit(main())
