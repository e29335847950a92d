r"""How long a PPO iteration takes here, and in AgileRL's LLMPPO, on the same model, prompts, lengths and epochs.

    python -m venv .venv-agilerl
    P=.venv-agilerl/bin/pip
    $P install torch==2.13.0 transformers==5.14.1 peft==0.21.0 datasets==5.0.1 bitsandbytes==0.49.2
    $P install --no-deps liger-kernel==0.8.2 "openenv<0.5" agilerl==2.58.0 agilerl-arena
    $P install accelerate dill fastrand flatten-dict gymnasium h5py lazy-loader "hydra-core<1.4" "omegaconf<2.4" \
        "pettingzoo<1.27" "pydantic<3" tensordict==0.13.0 termcolor tqdm wandb "redis<8.2" tabulate supersuit minari \
        pymunk pygame-ce
    $P install lightning torchmetrics "jsonargparse[shtab,signatures]" "rich<16" jinja2 matplotlib scipy pyyaml
    export PYTHONPATH=$PWD OMP_NUM_THREADS=1
    .venv-agilerl/bin/python benchmarks/against_agilerl.py
    .venv-agilerl/bin/python benchmarks/against_agilerl.py --check

Matched: torch, transformers and PEFT of the same versions; one thread; float32; 256 prompts of the arithmetic
experiment, one response of at most 44 tokens each; two epochs in minibatches of 64, each of one pass and one step of
AdamW; a Llama of the size of the arithmetic model (4 layers of 128, 0.8 M parameters) with random weights, whose
responses have 37 tokens on average; LoRA of rank 16 on every linear layer; the reference is the base without adapter.
AgileRL's critic is a second adapter on the same base. Here, `critic: adapter` does that work: a separate critic with
such an adapter on a frozen trunk. `critic: separate` trains its trunk in full, and `critic: head` is the default. In
AgileRL, gradient checkpointing is off, and all prompts are sampled in one batch: its own loop takes one at a time.

The systems take turns in one process, and seconds are those of the processor, because other work on the machine
changes them less. The first turn of each warms up and does not count. `--check` gives both the same weights and
episodes, and prints the largest differences of log-probs, values, losses and gradients.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPISODES, RESPONSE, EPOCHS, MINIBATCH, RANK = 256, 44, 2, 64, 16
ARITHMETIC = "experiments/models/arithmetic_llama"
THEIRS = "AgileRL"
SYSTEMS = (THEIRS, "critic: adapter", "critic: separate", "critic: head")
PARTS = ("sampling", "rest", "whole")
Row = dict[str, float]


def main() -> None:
    """Run the systems turn about and print their seconds and ratios, or, with --check, compare what they compute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="without the first")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS[1:], default=SYSTEMS[1:], help="beside AgileRL")
    parser.add_argument("--check", action="store_true", help="compare what both compute, and measure nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        if options.check:
            from agilerl_check import compare

            print("\n".join(compare(folder)))
            return
        iterate = {THEIRS: agilerl_iteration(folder), **{name: our_iteration(name, folder) for name in options.systems}}
        rows: dict[str, list[Row]] = {name: [] for name in iterate}
        batches = iter(problems().train_dataloader())
        for number in range(options.rounds + 1):
            batch = next(batches)
            for name, one in iterate.items():
                row = one(batch)
                print(f"round {number} {name}: {row}", file=sys.stderr, flush=True)
                rows[name] += [row] if number else []
    print("\n".join(report(rows)))


def save_model(folder: str) -> None:
    """Save a model with random weights, of the shape of the arithmetic model, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ARITHMETIC)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ARITHMETIC).save_pretrained(folder)


def report(rows: dict[str, list[Row]]) -> list[str]:
    """Return the table in markdown: median seconds of each part, and each part as a fraction of AgileRL's."""
    columns = (*PARTS, "steps", "tokens")
    medians = {
        system: {name: statistics.median(row[name] for row in found) for name in columns}
        for system, found in rows.items()
    }
    lines = [
        "| | sampling, s | rest, s | iteration, s | sampling | rest | iteration | steps | tokens trained |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for system, median in medians.items():
        seconds = " | ".join(f"{median[part]:.2f}" for part in PARTS)
        ratios = " | ".join(f"{median[part] / medians[THEIRS][part]:.2f}" for part in PARTS)
        lines.append(f"| {system} | {seconds} | {ratios} | {median['steps']:.0f} | {median['tokens']:.0f} |")
    return lines


def problems() -> Any:
    """Return the data module that both take their prompts from."""
    from ippo_lightning.data import TextDataModule
    from ippo_lightning.tasks import ArithmeticTask

    task = ArithmeticTask(max_terms=3, num_train=20 * EPISODES, num_validation=4, num_test=4)
    data = TextDataModule(task, batch_size=EPISODES)
    data.setup("fit")
    return data


# --- this project ----------------------------------------------------------------------------------------


def build_ours(system: str, model: str) -> Any:
    """Return the module of one of this project's systems."""
    from ippo_lightning import PPOModule
    from ippo_lightning.algorithms import ValueLoss
    from ippo_lightning.engine import UpdateSettings
    from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings

    policy = CausalLMPolicy(
        pretrained=model,
        lora=LoraSettings(r=RANK, alpha=RANK),
        value="head" if system.endswith("head") else "separate",
        self_check=False,
    )
    if system.endswith("adapter"):
        adapt(policy.critic)
    return PPOModule(
        policy=policy,
        reward=lambda prompts, responses, examples: [float(len(text) % 2) for text in responses],
        sampling=SamplingSettings(num_responses=1, max_new_tokens=RESPONSE),
        value_loss=ValueLoss(coef=0.5),
        # the mean over tokens, as in AgileRL
        update=UpdateSettings(
            num_epochs=EPOCHS, minibatch_size=MINIBATCH, micro_batch_size=MINIBATCH, loss_reduction="token_mean"
        ),
    )


def adapt(critic: Any) -> None:
    """Freeze the trunk of a separate critic, and train an adapter on it."""
    from peft import LoraConfig, inject_adapter_in_model

    critic.trunk.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"), critic.trunk)


class Host:
    """The loop that the module is attached to."""

    should_stop, callbacks, max_iterations = False, (), 1000


def our_iteration(system: str, model: str) -> Callable[[Any], Row]:
    """Return a function that trains on a batch of prompts and returns the seconds."""
    from lightning.fabric import Fabric

    module = build_ours(system, model)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapper = fabric.setup(module, module.configure_optimizers())[0]
    wrapper.mark_forward_method(module.loss_method)
    module.attach(Host(), wrapper=wrapper)
    sampling = time_calls(module.policy, "sample")

    def iterate(batch: Any) -> Row:
        start = time.process_time()
        numbers = module.training_step(batch, 0)
        whole = time.process_time() - start
        counts = {"steps": numbers["update/optimizer_steps"], "tokens": numbers["update/tokens_trained"]}
        return {"sampling": sampling[-1], "rest": whole - sampling[-1], "whole": whole, **counts}

    return iterate


def time_calls(owner: Any, name: str) -> list[float]:
    """Have the calls of a method timed; the list grows by the seconds of each."""
    seconds: list[float] = []
    honest = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        result = honest(*arguments, **named)
        seconds.append(time.process_time() - start)
        return result

    object.__setattr__(owner, name, timed)
    return seconds


# --- AgileRL ---------------------------------------------------------------------------------------------


def build_agilerl(model: str) -> Any:
    """Return AgileRL's agent."""
    import agilerl

    agilerl.HAS_LIGER_KERNEL = False  # its kernels need a GPU; before the other imports, which read this
    from agilerl.algorithms.ppo_llm import PPO
    from peft import LoraConfig
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return PPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        model_name=model,
        # without these, it asks for bfloat16 and an attention that a CPU may not have
        model_config={"dtype": torch.float32, "attn_implementation": "sdpa"},
        lora_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        batch_size=EPISODES,
        mini_batch_size=MINIBATCH,
        micro_batch_size_per_gpu=MINIBATCH,
        update_epochs=EPOCHS,
        beta=0.05,
        lr_actor=1e-4,
        lr_critic=1e-4,
        top_k=0,
        max_output_tokens=RESPONSE,
        max_model_len=128,
        use_separate_reference_adapter=False,
        gradient_checkpointing=False,
        use_liger_loss=False,
        device="cpu",
    )


def agilerl_iteration(model: str) -> Callable[[Any], Row]:
    """Return a function that trains on a batch of prompts and returns the seconds."""
    from transformers import AutoTokenizer

    agent = build_agilerl(model)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    steps = time_calls(agent.optimizer._single_optimizer(), "step")

    def iterate(batch: Any) -> Row:
        steps.clear()
        start = time.process_time()
        token_ids, masks = sample_at_once(agent, tokenizer, batch["prompts"])
        sampled = time.process_time()
        agent.learn((token_ids, masks, torch.tensor([float(int(mask.sum()) % 2) for mask in masks])))
        end = time.process_time()
        counts = {"steps": float(len(steps)), "tokens": float(EPOCHS * sum(int(mask.sum()) for mask in masks))}
        return {"sampling": sampled - start, "rest": end - sampled, "whole": end - start, **counts}

    return iterate


def sample_at_once(agent: Any, tokenizer: Any, prompts: list[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Sample a response to each prompt in one batch; return what AgileRL's `get_action` returns for them."""
    from transformers import GenerationConfig

    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    width = batch["input_ids"].shape[1]
    ends = {"pad_token_id": agent.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=RESPONSE, **ends)
    agent.actor.eval()
    with torch.no_grad(), agent.select_adapter("actor"):
        rows = agent.actor.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=settings
        )
    token_ids, masks = [], []
    for row, mask in zip(rows, batch["attention_mask"], strict=True):
        prompt = int(mask.sum())
        response = row[width:]
        # What follows EOS is padding; a model with random weights also samples the padding token as any other.
        stops = (response == tokenizer.eos_token_id).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(response)
        token_ids.append(torch.cat([row[width - prompt : width], response[:length]])[None])
        masks.append((torch.arange(1, prompt + length) >= prompt)[None])
    return token_ids, masks


if __name__ == "__main__":
    main()
