r"""How long a PPO iteration takes here, and in TRL's PPOTrainer, on the same model, prompts, lengths and epochs.

    python -m venv --system-site-packages .venv-trl      # over an environment that has this package
    .venv-trl/bin/pip install --no-deps trl==1.12.0      # the last release with PPO
    .venv-trl/bin/python benchmarks/against_trl.py

256 prompts of the arithmetic experiment, one response of at most 44 tokens each, two epochs in minibatches of 64, the
0.8 M-parameter SFT model or, with --untrained, one of its size with random weights, whose responses are longer; a
frozen copy as reference. TRL always has a value model of its own; here that is `critic:
separate`, so that both do the same work, beside this project's default, a value head on the policy's trunk. TRL's
reward is a module that gives zeros and costs nothing. Each system runs in processes of its own, turn about, and the
first iteration of each run, which warms up, does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

EPISODES, RESPONSE, EPOCHS, MINIBATCH = 256, 44, 2, 64
MODEL = "experiments/models/arithmetic_llama"
SYSTEMS = ("TRL", "critic: separate", "critic: head")


def main() -> None:
    """Run the systems turn about and print their seconds and ratios, or, with --run, run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=5, help="of each run, without the first")
    parser.add_argument("--untrained", action="store_true", help="random weights: most responses are 44 tokens long")
    parser.add_argument("--trl_rollout_batch", type=int, default=64, help="TRL's own default; 256 is its fastest here")
    parser.add_argument("--run", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run = run_trl if options.run == "TRL" else run_ours
        with tempfile.TemporaryDirectory() as folder:
            model = untrained(folder) if options.untrained else MODEL
            print(json.dumps(run(options.run, model, options.iterations + 1, options.trl_rollout_batch)))
        return
    rows: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    for _ in range(options.rounds):
        for system in SYSTEMS:
            rows[system] += in_own_process(system, options)[1:]
    for line in report(rows):
        print(line)


def untrained(folder: str) -> str:
    """Save a model of the same size with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def in_own_process(system: str, options: argparse.Namespace) -> list[dict[str, float]]:
    """Return the seconds of each iteration, by part, of one system."""
    command = [sys.executable, __file__, "--run", system, "--iterations", str(options.iterations)]
    command += ["--trl_rollout_batch", str(options.trl_rollout_batch), *(["--untrained"] if options.untrained else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    result: list[dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def report(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the table in markdown: median seconds of each part, and the whole as a fraction of TRL's."""
    parts = ("rollout", "update", "whole")
    medians = {
        system: {part: statistics.median(row[part] for row in found) for part in parts}
        for system, found in rows.items()
    }
    lines = ["| | rollout, s | update, s | whole, s | of TRL |", "|---|--:|--:|--:|--:|"]
    for system, median in medians.items():
        cells = " | ".join(f"{median[part]:.2f}" for part in parts)
        lines.append(f"| {system} | {cells} | {median['whole'] / medians['TRL']['whole']:.2f} |")
    return lines


# --- this project ----------------------------------------------------------------------------------------


def run_ours(system: str, model: str, iterations: int, _: int) -> list[dict[str, float]]:
    """Train through the Fabric loop; return each iteration's seconds."""
    from lightning.fabric import Fabric, seed_everything

    from ippo_lightning import FabricLoop, PPOModule
    from ippo_lightning.engine import UpdateSettings
    from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
    from ippo_lightning.run.settings import LoopSettings

    seed_everything(1, verbose=False)
    module = PPOModule(
        policy=CausalLMPolicy(pretrained=model, value=system.split()[-1], reference="copy"),  # type: ignore[arg-type]
        reward=lambda prompts, responses, examples: [0.0] * len(prompts),
        sampling=SamplingSettings(num_responses=1, max_new_tokens=RESPONSE),
        update=UpdateSettings(num_epochs=EPOCHS, minibatch_size=MINIBATCH, micro_batch_size=MINIBATCH),
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(
            run_dir=folder,
            max_iterations=iterations,
            evaluate_every_n_iterations=0,
            evaluate_first=False,
            test_at_end=False,
            save_model=False,
            checkpoint_every_n_iterations=0,
            progress_bar=False,
        )
        FabricLoop(Fabric(accelerator="cpu", devices=1), module, problems(), settings=settings).fit()
        lines = (Path(folder) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    names = {"rollout": "time/rollout_seconds", "update": "time/update_seconds", "whole": "time/iteration_seconds"}
    return [{part: row[name] for part, name in names.items()} for row in history]


def problems() -> Any:
    """Return the data module that both take their prompts from."""
    from ippo_lightning.data import TextDataModule
    from ippo_lightning.tasks import ArithmeticTask

    task = ArithmeticTask(max_terms=3, num_train=10 * EPISODES, num_validation=4, num_test=4)
    data = TextDataModule(task, batch_size=EPISODES)
    data.setup("fit")
    return data


# --- TRL -------------------------------------------------------------------------------------------------


class NoReward(nn.Module):
    """What TRL asks of a reward model, for nothing: zeros."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def score(self, hidden: Tensor) -> Tensor:
        """Return [rows, steps, 1]."""
        return hidden


class Backbone(nn.Module):
    """Gives zeros for hidden states."""

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Return what TRL reads."""
        return SimpleNamespace(hidden_states=[torch.zeros(*input_ids.shape, 1)])


def run_trl(_: str, model: str, iterations: int, rollout_batch: int) -> list[dict[str, float]]:
    """Train through TRL's PPOTrainer; return each iteration's seconds."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Clock(TrainerCallback):
        """Notes when iterations end."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    critic = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    prompts = [row["prompt"] for row in problems().train_dataloader().dataset.rows]
    table = Dataset.from_dict({"input_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts]})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder,
            # with accumulation over the four minibatches TRL would step once an epoch instead of four times
            per_device_train_batch_size=EPISODES,
            gradient_accumulation_steps=1,
            num_mini_batches=EPISODES // MINIBATCH,
            num_ppo_epochs=EPOCHS,
            total_episodes=iterations * EPISODES,
            local_rollout_forward_batch_size=rollout_batch,
            response_length=RESPONSE,
            temperature=1.0,
            stop_token="eos",
            num_sample_generations=0,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=NoReward(),
            value_model=critic,
            train_dataset=table,
            callbacks=[clock],
        )
        rollouts = time_rollouts(trainer)
        trainer.train()
    whole = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return [
        {"rollout": sampling, "update": both - sampling, "whole": both}
        for sampling, both in zip(rollouts, whole, strict=True)
    ]


def time_rollouts(trainer: Any) -> list[float]:
    """Have TRL's sampling timed; its scoring of the rollout counts as update there."""
    from trl.experimental.ppo import ppo_trainer

    seconds: list[float] = []
    honest = ppo_trainer.batch_generation

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = honest(*arguments, **named)
        seconds.append(time.perf_counter() - start)
        return result

    ppo_trainer.batch_generation = timed
    return seconds


if __name__ == "__main__":
    main()
