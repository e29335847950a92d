"""A short run of the packaged model, which is right in most of its answers, to be evaluated."""

from __future__ import annotations

from pathlib import Path

PROMPTS, SAMPLES = 6, 4
"""Of the run's test split, and of its own final evaluation."""
_TASK = "data.init_args.task.init_args"


def fit_words(run: Path) -> list[str]:
    """The words of `ippo` that make the run."""
    words = ["fit", "--task", "arithmetic", "--loop.max_iterations=1", "--loop.evaluate_first=false"]
    words += ["--loop.evaluate_every_n_iterations=0", "--loop.progress_bar=false", "--data.init_args.batch_size=4"]
    words += [f"--{_TASK}.num_train=8", f"--{_TASK}.num_validation=2", f"--{_TASK}.num_test={PROMPTS}"]
    words += ["--model.init_args.sampling.max_new_tokens=24", f"--model.init_args.sampling.num_responses={SAMPLES}"]
    return [*words, "--loop.run_dir", str(run)]


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of an evaluation, without its lock."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != ".lock"}
