"""The parts `shape` and `vocabulary` of benchmarks/gpu.py: every stage of an iteration of a Llama of 1B."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import large
import torch

from ippo_lightning.engine import run_update
from ippo_lightning.influence import target_gradient
from ippo_lightning.modules import PPOModule
from ippo_lightning.records import UpdatePlan

if TYPE_CHECKING:
    from gpu_parts import Rows

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 operations per second, from the makers' data sheets."""
SLOW_ROWS = 16
"""Most episodes that are scored by one backward each."""


def shape(options: argparse.Namespace, rows: Rows) -> None:
    """A Llama of 1B with random weights, LoRA r16, in bfloat16 and NF4."""
    for weights in ("bfloat16", "nf4"):
        chosen = shape_options(options, weights=weights)
        try:
            _measure(chosen, Path(options.scratch) / "1B", partial(add_stage, rows, weights, options))
        except Exception as error:  # without bitsandbytes there is no NF4, and the first rows stay
            rows.fail(f"{weights}, stopped", error)
            _print_traceback()


def vocabulary(options: argparse.Namespace, rows: Rows) -> None:
    """Peak memory of each stage with a vocabulary of 4k and of 128k, beside the weights."""
    for vocab in (128, 1024) if options.tiny else (4096, 131072):
        sizes: dict[str, Any] = {} if options.tiny else {"episodes": 16, "prompt": 64, "response": 192}
        chosen = shape_options(options, vocab=vocab, **sizes)

        def report(name: str, *, gib: float, seconds: float, held: float, vocab: int = vocab, **_: Any) -> None:
            rows.add(f"{name}, vocabulary {vocab}", seconds=seconds, gib=gib - held)

        _measure(chosen, Path(options.scratch) / f"vocabulary_{vocab}", report, warm=False)


def shape_options(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """Return the sizes of a case as benchmarks/large.py takes them."""
    full = {"shape": "1B", "episodes": 256, "prompt": 128, "response": 256, "micro_batch": 16, "vocab": 32000}
    tiny = {"shape": "tiny", "episodes": 8, "prompt": 8, "response": 8, "micro_batch": 4, "vocab": 128}
    chosen = {**(tiny if options.tiny else full), "key_value_heads": 4, "cache": "dynamic", "weights": "bfloat16"}
    return argparse.Namespace(**{**chosen, "gradient_checkpointing": False, "device": options.device, **changes})


def _measure(chosen: argparse.Namespace, folder: Path, report: Callable[..., None], *, warm: bool = True) -> None:
    module = large.build(chosen, folder)
    held = torch.cuda.memory_allocated() / 2**30 if chosen.device == "cuda" else float("nan")
    if warm:
        few = argparse.Namespace(**{**vars(chosen), "episodes": 4})
        stages(module, few, lambda *_, **__: None)
    stages(module, chosen, partial(report, held=held))
    # The module and its samplers refer to each other; the next case needs the memory.
    del module
    large.collect(chosen.device)


def stages(module: PPOModule, chosen: argparse.Namespace, report: Callable[..., None]) -> None:
    """Run one iteration stage by stage.

    Args:
        module: on the device.
        chosen: sizes.
        report: called after each stage with its name, seconds, GiB, tokens, and forward passes that its work is worth.
    """
    meter = large.Meter(chosen.device)

    def timed(name: str, work: Callable[[], Any], *, tokens: int, passes: float) -> Any:
        result = meter.take(name, work)
        report(name, **meter.rows[name], tokens=tokens, passes=passes)
        return result

    length = chosen.prompt + chosen.response
    tokens = chosen.episodes * length
    batch = large.prompts_of(chosen)
    sampled = _rollout(module, batch, meter, timed, tokens=tokens)
    episodes = module.compute_advantages(module.compute_rewards(sampled))
    prompts = batch["prompts"][:SLOW_ROWS]
    texts = {"prompts": prompts, "responses": [("7+12=19;" * chosen.response)[: chosen.response]] * len(prompts)}
    loss = partial(target_gradient, module, lambda model, part: model.validation_loss(part), [texts])
    direction = timed("target gradient", loss, tokens=len(prompts) * length, passes=2)
    for way, passes in (("hooks", 2), ("finite_difference", 1), ("per_episode", 2)):
        rows = min(SLOW_ROWS, len(episodes)) if way == "per_episode" else len(episodes)
        part = episodes.select(torch.arange(rows, device=episodes.device))
        work = partial(large.scored, module, part, direction, way=way, size=chosen.micro_batch)
        timed(f"scores: {way}, {rows} episodes", work, tokens=rows * length, passes=passes)
    plan = UpdatePlan(episodes=episodes)
    plan.sealed = True
    update = partial(run_update, module, plan, module.update_settings)
    timed("update, 2 epochs", update, tokens=2 * tokens, passes=2)


def _rollout(
    module: PPOModule, batch: dict[str, Any], meter: large.Meter, timed: Callable[..., Any], *, tokens: int
) -> Any:
    """Sample and score, as two stages."""
    policy = module.policy
    taken: list[Any] = []

    def once(*arguments: Any, **options: Any) -> Any:
        return taken[0]

    def sampled(*arguments: Any, **options: Any) -> Any:
        # Sampling reads each token once, prompt and response.
        work = partial(type(policy).sample, policy, *arguments, **options)
        taken.append(timed("sampling", work, tokens=tokens, passes=1))
        raise _SampledError

    # The rollout stops at its samples, and the second one finds them: so each stage has a time and a peak of its own.
    try:
        policy.__dict__["sample"] = sampled
        try:
            module.rollout(module.plan_rollout(batch))
        except _SampledError:
            policy.__dict__["sample"] = once
        rest = partial(module.rollout, module.plan_rollout(batch))
        return timed("log-probs of policy and reference", rest, tokens=tokens, passes=2)
    finally:
        policy.__dict__.pop("sample", None)


class _SampledError(Exception):
    """Ends a rollout after its samples."""


def add_stage(
    rows: Rows,
    weights: str,
    options: argparse.Namespace,
    name: str,
    *,
    seconds: float,
    gib: float,
    tokens: int,
    passes: float,
    **_: Any,
) -> None:
    """Write a stage. A forward is worth 2 operations per weight and token, a backward to the adapters as much."""
    size = large.SHAPES["tiny" if options.tiny else "1B"]
    hidden, inner, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    key_values = 2 * hidden * hidden * 4 // size["num_attention_heads"]
    weights_in_layers = layers * (2 * hidden * hidden + key_values + 3 * hidden * inner)
    peak = _peak_flops()
    used = 2.0 * weights_in_layers * tokens * passes / seconds / peak if peak else float("nan")
    rows.add(f"{weights}, {name}", seconds=seconds, gib=gib, tokens_per_second=tokens / seconds, utilisation=used)


def _peak_flops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()  # into the part's log
