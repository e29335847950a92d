"""Small runs that kept their buffers, and their parts as an analysis takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment_files import write

from ippo_lightning.analysis import RepeatedRounds, kept_rounds, read_round
from ippo_lightning.cli.building import build_loop
from ippo_lightning.cli.commands import experiment_of
from ippo_lightning.cli.main import main
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.policies import CausalLMPolicy

ITERATIONS, STEPS = 3, 64
_QUIET = ["--loop.progress_bar", "false", "--loop.test_at_end", "false", "--loop.evaluate_first", "false"]


def lake_run(folder: Path) -> Path:
    """FrozenLake with one optimizer step per iteration; return the folder of the run."""
    run = folder / "lake"
    main(
        ["fit", "--task", "frozenlake", "--method", "keep_buffers", *_QUIET, "--loop.run_dir", str(run),
         "--loop.evaluate_every_n_iterations", "0", "--loop.max_iterations", str(ITERATIONS),
         "--model.num_steps", str(STEPS), "--model.update.num_epochs", "1", "--model.update.minibatch_size", str(STEPS),
         "--model.optimizer.learning_rate", "0.5"]
    )  # fmt: skip
    return run


def text_run(folder: Path, *, config: dict[str, Any]) -> Path:
    """A tiny language model on arithmetic; return the folder of the run."""
    model, run = folder / "model", folder / "text"
    tokenizer = arithmetic_tokenizer()
    CausalLMPolicy(config=config, tokenizer=tokenizer, value="none", reference="none").save_pretrained(model)
    experiment = {
        "seed_everything": 3,
        "loop": {
            "run_dir": str(run), "max_iterations": 2, "progress_bar": False, "evaluate_every_n_iterations": 0,
            "evaluate_first": False, "test_at_end": False, "save_model": False,
        },
        "model": {
            "class_path": "PPOModule",
            "init_args": {
                "policy": {"class_path": "CausalLMPolicy", "init_args": {"pretrained": str(model)}},
                "sampling": {"num_responses": 4, "max_new_tokens": 6},
                "update": {"minibatch_size": 32, "num_epochs": 1},
                "optimizer": {"learning_rate": 1e-2},
            },
        },
        "data": {
            "class_path": "TextDataModule",
            "init_args": {
                "task": {"class_path": "ArithmeticTask", "init_args": {"num_train": 16, "num_validation": 4}},
                "batch_size": 8,
            },
        },
        "callbacks": [{"class_path": "EpisodeLog", "init_args": {"file_name": None, "keep_buffers": True}}],
    }  # fmt: skip
    main(["fit", "--config", write(experiment, folder)])
    return run


def repeated(run: Path) -> RepeatedRounds:
    """What an analysis gets."""
    devices = ("--fabric.devices=1", "--fabric.loggers=[]")
    parser, experiment = experiment_of(run, *devices, given=["trace", str(run)])
    experiment[experiment.subcommand].callbacks = None
    return RepeatedRounds(build_loop(parser, experiment), read_round(run, kept_rounds(run)[-1]))
