r"""Whether the critic-free algorithms take the steps of TRL's GRPOTrainer and RLOOTrainer: losses and gradients.

    python -m venv --system-site-packages .venv-trl      # over an environment that has this package
    .venv-trl/bin/pip install --no-deps trl==1.16.0
    .venv-trl/bin/python benchmarks/against_trl_grpo.py

32 responses of at most 12 tokens to 8 prompts of the arithmetic experiment are sampled once, by the 0.8 M-parameter SFT
model. Both systems get them, with the same rewards, and compute log-probs, advantages, losses and gradients by
themselves, in float32. They go three times over two minibatches of 16. Each step is one of plain gradient descent, with
a rate that carries ratios beyond the bounds; a difference of one step would be in all after it. Neither shuffles.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from ippo_lightning import PPOModule, TextEpisodes
from ippo_lightning.algorithms import CISPOLoss, ClippedLoss, FixedKLController, GroupBaseline, LeaveOneOut
from ippo_lightning.data import TextDataModule
from ippo_lightning.engine import UpdateSettings, update
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.records import UpdatePlan
from ippo_lightning.tasks import ArithmeticTask

MODEL = "experiments/models/arithmetic_llama"
PROMPTS, RESPONSES, LONGEST, EPOCHS = 8, 4, 12, 3


@dataclass(frozen=True)
class Case:
    """One algorithm, as settings of both."""

    trl: Mapping[str, Any]
    ours: Mapping[str, Any] = field(default_factory=dict)
    update: Mapping[str, Any] = field(default_factory=dict)
    minibatch: int = 16
    rate: float = 0.05
    parts: int = 1
    """Into which each minibatch is divided by gradient accumulation."""
    is_rloo: bool = False


GSPO = {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
CASES: Mapping[str, Case] = {
    "grpo": Case({"loss_type": "grpo"}),
    "grpo in 4 parts": Case({"loss_type": "grpo"}, parts=4),
    "grpo, beta 0.04": Case(
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
        {"loss": ClippedLoss(beta=0.04)},
        rate=0.002,
    ),
    "grpo, beta 0.04 times the ratio": Case(
        {"loss_type": "grpo", "beta": 0.04}, {"loss": ClippedLoss(beta=0.04, ratio_in_divergence=True)}
    ),
    "grpo, delta 1.5, scale of the batch": Case(
        {"loss_type": "grpo", "delta": 1.5, "scale_rewards": "batch"},
        {"loss": ClippedLoss(delta=1.5), "advantages": GroupBaseline(scale="batch")},
    ),
    "grpo, cut responses count as zero": Case(
        {"loss_type": "grpo", "mask_truncated_completions": True},
        update={"mask_truncated": True, "denominator": "all"},
        minibatch=PROMPTS * RESPONSES,  # what is left is divided evenly here, and as it comes there
    ),
    "dapo, cut responses left out": Case(
        {"loss_type": "dapo", "mask_truncated_completions": True},
        update={"mask_truncated": True, "loss_reduction": "rollout_token_mean"},
        minibatch=PROMPTS * RESPONSES,
    ),
    "bnpo": Case({"loss_type": "bnpo"}, update={"loss_reduction": "token_mean"}),
    "dapo, 0.2 and 0.28": Case(
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"loss": ClippedLoss(high=0.28)},
        {"loss_reduction": "rollout_token_mean"},
    ),
    "dapo in 4 parts": Case({"loss_type": "dapo"}, update={"loss_reduction": "rollout_token_mean"}, parts=4),
    "dr_grpo": Case(
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"advantages": GroupBaseline(scale="none")},
        {"loss_reduction": "fixed_length"},
    ),
    "gspo": Case({"loss_type": "grpo", **GSPO}, {"loss": ClippedLoss(low=3e-4, high=4e-4, ratio="sequence_mean")}),
    "cispo, cap 1.2": Case(
        {"loss_type": "cispo", "epsilon_high": 1.2},
        {"loss": CISPOLoss(cap=1.2)},
        {"loss_reduction": "rollout_token_mean"},
    ),
    "rloo, beta 0.05": Case(
        {"beta": 0.05},
        {
            "advantages": LeaveOneOut(),
            "loss": ClippedLoss(ratio="sequence_sum"),
            "kl_controller": FixedKLController(coef=0.05),
        },
        is_rloo=True,
    ),
}


@dataclass
class Steps:
    """What a system did, step by step."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    clipped: float = 0.0


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="this one only")
    chosen = parser.parse_args().case
    print("| case | largest loss | difference | largest gradient | difference | clipped tokens |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, case in CASES.items() if chosen is None else [(chosen, CASES[chosen])]:
        module = module_of(case)
        episodes = rollout(module)
        theirs = trl_steps(case, episodes)
        mine = our_steps(case, module, episodes)
        print(f"| {name} | {row_of(mine, theirs, has_loss=not isinstance(module.loss, CISPOLoss))} |", flush=True)


def row_of(mine: Steps, theirs: Steps, *, has_loss: bool) -> str:
    """Return the cells of a case: largest numbers, and largest differences over all steps."""
    assert len(mine.gradients) == len(theirs.gradients) >= EPOCHS
    losses = [max(map(abs, theirs.losses)), max(abs(a - b) for a, b in zip(mine.losses, theirs.losses, strict=True))]
    pairs = [(a[name], b[name]) for a, b in zip(mine.gradients, theirs.gradients, strict=True) for name in b]
    gradients = [max(float(b.abs().max()) for _, b in pairs), max(float((a - b).abs().max()) for a, b in pairs)]
    cells = [f"{number:.1e}" if has_loss else "-" for number in losses] + [f"{number:.1e}" for number in gradients]
    return " | ".join([*cells, f"{mine.clipped:.0%}"])


def reward_of(ids: Sequence[int]) -> float:
    """Return a number that depends on the response alone."""
    return (7 * len(ids) + 3 * sum(ids)) % 5 / 4


# --- this project ----------------------------------------------------------------------------------------


def module_of(case: Case) -> PPOModule:
    """Return a module with the settings of a case."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"advantages": GroupBaseline(), "kl_controller": FixedKLController(coef=0.0)}
    return PPOModule(
        policy=CausalLMPolicy(pretrained=MODEL, value="none", reference="copy"),
        reward=lambda *_: [0.0],
        sampling=SamplingSettings(num_responses=RESPONSES, max_new_tokens=LONGEST),
        update=UpdateSettings(
            num_epochs=EPOCHS,
            minibatch_size=case.minibatch,
            micro_batch_size=case.minibatch // case.parts,
            **case.update,
        ),
        **{**settings, **case.ours},
    )


def rollout(module: PPOModule) -> TextEpisodes:
    """Return responses with rewards and advantages."""
    data = TextDataModule(ArithmeticTask(max_terms=3, num_train=PROMPTS, num_validation=4, num_test=4))
    data.setup("fit")
    rows = data.splits.prompts
    batch = {"prompts": [row["prompt"] for row in rows], "examples": [row["example"] for row in rows]}
    torch.manual_seed(1)
    episodes = module.rollout(module.plan_rollout(batch))
    rewards = [reward_of(ids) for ids in responses_of(episodes)]
    module.reward = lambda *_: rewards
    return module.compute_advantages(module.compute_rewards(episodes))


def responses_of(episodes: TextEpisodes) -> list[list[int]]:
    """Return the ids of each response."""
    return [ids[mask].tolist() for ids, mask in zip(episodes.response_ids, episodes.mask, strict=True)]


def our_steps(case: Case, module: PPOModule, episodes: TextEpisodes) -> Steps:
    """Update by the engine, with a plain step of gradient descent in place of the optimizer's."""
    done = Steps()
    losses: list[float] = []
    parameters = dict(module.policy.language_model.named_parameters())
    honest = module.minibatch_loss

    def noted(minibatch: Any) -> Any:
        loss, sums = honest(minibatch)
        losses.append(float(loss.detach()))
        return loss, sums

    def step() -> float:
        done.losses.append(sum(losses))
        done.gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        losses.clear()
        with torch.no_grad():
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-case.rate)
                parameter.grad = None
        return 0.0

    module.minibatch_loss, module.take_step = noted, step  # type: ignore[method-assign]
    module.loss_through_wrapper = noted  # type: ignore[method-assign]
    module.backward_loss = lambda loss: loss.backward()  # type: ignore[method-assign]
    module.no_sync = lambda enabled: nullcontext()  # type: ignore[method-assign]
    # in order, as TRL below
    update._shuffled = lambda rows, parts: torch.tensor_split(rows, parts)  # type: ignore[assignment,return-value]
    plan = UpdatePlan(episodes=episodes)
    if module.update_settings.mask_truncated:
        plan.drop(episodes.truncated, reason="truncated")
    plan.sealed = True
    outcome = update.run_update(module, plan, module.update_settings)
    done.clipped = outcome.metrics["update/clip_fraction"]
    return done


# --- TRL -------------------------------------------------------------------------------------------------


def trl_steps(case: Case, episodes: TextEpisodes) -> Steps:
    """Train by TRL's own loop on the given responses."""
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    done = Steps()
    losses: list[float] = []

    class Watch(TrainerCallback):
        """Takes the gradients before each step."""

        def on_pre_optimizer_step(self, *_: Any, **named: Any) -> None:
            done.losses.append(sum(losses))
            losses.clear()
            found = {name: p.grad.clone() for name, p in named["model"].named_parameters() if p.grad is not None}
            done.gradients.append(found)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            (RLOOTrainer, RLOOConfig) if case.is_rloo else (GRPOTrainer, GRPOConfig), case, folder, episodes, Watch()
        )
        give_responses(trainer, episodes, with_log_probs=not case.is_rloo)
        honest = trainer.training_step

        def noted(*arguments: Any, **named: Any) -> Tensor:
            loss = honest(*arguments, **named)
            losses.append(float(loss))
            return loss

        trainer.training_step = noted
        trainer.train()
    return done


def trainer_of(classes: Any, case: Case, folder: str, episodes: TextEpisodes, watch: Any) -> Any:
    """Return a trainer with the settings of a case, and plain gradient descent."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=case.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    steps = PROMPTS * RESPONSES // case.minibatch
    arguments = classes[1](
        output_dir=folder,
        per_device_train_batch_size=case.minibatch // case.parts,
        gradient_accumulation_steps=case.parts,
        steps_per_generation=steps * case.parts,
        num_iterations=EPOCHS,
        num_generations=RESPONSES,
        max_completion_length=LONGEST,
        max_steps=EPOCHS * steps,
        max_grad_norm=0.0,
        shuffle_dataset=False,
        temperature=1.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        **case.trl,
    )
    trainer = classes[0](
        model=model,
        reward_funcs=lambda completion_ids, **_: [reward_of(ids) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": list(episodes.prompts[::RESPONSES])}),
        processing_class=AutoTokenizer.from_pretrained(MODEL, padding_side="left"),
        callbacks=[watch],
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def give_responses(trainer: Any, episodes: TextEpisodes, *, with_log_probs: bool) -> None:
    """Let a trainer take the given responses in place of its own samples, in their order."""
    import sys

    given = responses_of(episodes)
    prompts = [ids[mask].tolist() for ids, mask in zip(episodes.prompt_ids, episodes.prompt_mask, strict=True)]

    def generate(prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        assert [list(ids) for ids in prompt_ids] == prompts, json.dumps([prompt_ids, prompts])
        return (given, None) if with_log_probs else given

    trainer._generate_single_turn = functools.wraps(trainer._generate_single_turn)(generate)
    sys.modules[type(trainer).__module__].shuffle_sequence_dict = lambda rows: rows  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
