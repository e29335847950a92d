"""A run of two iterations of a tiny model with any combination of options, and what must hold of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from covering import Case
from critic_free import ALGORITHMS, critic_free_module
from lightning.fabric import Fabric
from training_parts import same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable
from two_ranks import nf4_base

from ippo_lightning.callbacks import EpisodeLog, InfluenceFilter, PromptSelection
from ippo_lightning.data import arithmetic_tokenizer
from ippo_lightning.engine import DynamicSampling, PilotCommit
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.records import UpdateStats
from ippo_lightning.selection import (
    ActionLogProb,
    ActivationDifference,
    AdvantageHeuristic,
    AverageReward,
    ByLength,
    DropEqualRewards,
    DropNegatives,
    DropRandom,
    IntermediateDifficulty,
    LeaveOneOutMean,
    MaxRewardVariance,
    Random,
    RandomPrompts,
    ReturnOfBuffer,
    ScoringSettings,
    SequenceReturn,
    SourceBandit,
    TDPriority,
)

RULES: dict[str, Callable[[], dict[str, Any]]] = {
    "influence": dict,
    "no weights": lambda: {"power": 0.0},
    "random": lambda: {"rule": "random"},
    "half": lambda: {"rule": Random(fraction=0.5)},
    "advantage_sign": lambda: {"rule": "advantage_sign"},
    "reward": lambda: {"rule": "reward"},
    "negatives": lambda: {"rule": DropNegatives(fraction=0.5)},
    "drop random": lambda: {"rule": DropRandom(fraction=0.5)},
    "variance": lambda: {"rule": MaxRewardVariance(num_kept=1)},
    "equal": lambda: {"rule": DropEqualRewards()},
    "length": lambda: {"rule": ByLength(fraction=0.5)},
    "heuristic": lambda: {"rule": AdvantageHeuristic()},
    "td": lambda: {"rule": TDPriority()},
}
TARGETS: dict[str, Callable[[], Any]] = {
    "demonstrations": lambda: None,
    "return": ReturnOfBuffer,
    "return of others": lambda: ReturnOfBuffer(leave_out_self=True),
    "reward": AverageReward,
    "validation reward": lambda: AverageReward(prompts="validation", num_prompts=2),
    "sequence": lambda: SequenceReturn(num_prompts=2),
    "others": LeaveOneOutMean,
    "activation": ActivationDifference,
    "action": lambda: ActionLogProb(observation=[0.0], action=[0.0]),
}
PROMPTS: dict[str, Callable[[], Any]] = {
    "all": lambda: None,
    "random": RandomPrompts,
    "difficulty": IntermediateDifficulty,
    "bandit": lambda: SourceBandit(source="answer"),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "algorithm": ("ppo", "grpo", "dr_grpo", "rloo", "dapo", "gspo"),
    "rule": tuple(RULES),
    "target": tuple(TARGETS),
    "prompts": tuple(PROMPTS),
    "score_at": ("rollout_end", "minibatch", "layer"),
    "keep_buffers": ("no", "yes"),
    "dynamic": ("no", "yes", "pilots"),
    "critic": ("head", "none", "adapter", "separate"),
    "weights": ("full", "lora", "nf4"),
    "precision": ("32-true", "bf16-mixed"),
    "reduction": ("own", "token_mean", "rollout_token_mean", "fixed_length"),
    "mask_truncated": ("no", "yes"),
    "steps": ("fewer", "same"),
    "whole_groups": ("no", "mean", "sum"),
    "baselines": ("all", "kept"),
    "method": ("hooks", "per_episode", "finite_difference", "forward"),
    "denominator": ("kept", "all"),
    "value_on_dropped": ("no", "yes"),
    "on_empty": ("skip", "keep_all", "stop"),
    "drop_when": ("mean", "all"),
    "min_keep": ("0", "2"),
}


OF_ENVIRONMENTS = ("heuristic", "td", "action")
"""Rules and targets that refuse texts."""


def filter_of(case: Case) -> InfluenceFilter:
    """Return the filter of a case.

    Raises:
        UserError: the options of the filter contradict each other.
    """
    groups = case["whole_groups"]
    settings: dict[str, Any] = {"on_empty": case["on_empty"], "drop_when": case["drop_when"], **RULES[case["rule"]]()}
    return InfluenceFilter(
        **settings,
        target=TARGETS[case["target"]](),
        score_at=case["score_at"],  # type: ignore[arg-type]
        whole_groups=None if groups == "no" else groups,  # type: ignore[arg-type]
        baselines=case["baselines"],  # type: ignore[arg-type]
        min_keep=int(case["min_keep"]),
        scoring=ScoringSettings(method=case["method"], health_every_n_iterations=2, health_groups=2),  # type: ignore[arg-type]
    )


def is_allowed(case: Case) -> bool:
    """Return whether a filter can be built, and nothing else in the case is refused by itself, as other tests hold."""
    has_critic, is_early = case["algorithm"] == "ppo", case["score_at"] == "rollout_end"
    refused = (
        has_critic != (case["critic"] != "none"),
        has_critic and (case["whole_groups"] != "no" or case["baselines"] == "kept"),
        case["critic"] == "adapter" and case["weights"] == "full",
        case["critic"] == "separate" and case["weights"] == "nf4",
        case["prompts"] == "difficulty" and not has_critic,
        case["prompts"] != "all" and case["dynamic"] != "no",
        case["keep_buffers"] == "yes" and not is_early,
        case["value_on_dropped"] == "yes" and case["score_at"] == "layer",
        case["method"] == "forward" and case["weights"] == "nf4",
        # Of a random model in bfloat16, forward derivatives and autograd can differ by more than their check allows.
        case["method"] == "forward" and case["precision"] == "bf16-mixed",
        case["rule"] in OF_ENVIRONMENTS or case["target"] in OF_ENVIRONMENTS,
    )
    if any(refused):
        return False
    try:
        filter_of(case)
    except UserError:
        return False
    return True


def module_of(case: Case, base: Path) -> PPOModule:
    """Return the module of a case.

    Args:
        case: of the options.
        base: folder with a model for four-bit weights.
    """
    policy: dict[str, Any] = {"value": case["critic"]}
    if case["weights"] != "full":
        policy["lora"] = LoraSettings(r=2)
    if case["weights"] == "nf4":
        four_bit: dict[str, Any] = {"pretrained": str(base), "quantization": "nf4", "seed": 3}
        built = CausalLMPolicy(**policy, **four_bit, tokenizer=arithmetic_tokenizer())
    else:
        built = tiny_policy(**policy)
    update: dict[str, Any] = {
        "num_epochs": 2,
        "minibatch_size": 3,
        "micro_batch_size": 2,
        "mask_truncated": case["mask_truncated"] == "yes",
        "steps_after_filtering": case["steps"],
        "denominator": case["denominator"],
        "train_value_on_dropped": case["value_on_dropped"] == "yes",
    }
    if case["reduction"] != "own":
        update["loss_reduction"] = case["reduction"]
    changes: dict[str, Any] = {
        "no": {},
        "yes": {"dynamic_sampling": DynamicSampling()},
        "pilots": {"pilot_commit": PilotCommit(num_pilots=1)},
    }[case["dynamic"]]
    if case["algorithm"] == "ppo":
        return tiny_module(policy=built, update=update, **changes)
    assert case["algorithm"] in ALGORITHMS
    return critic_free_module(case["algorithm"], policy=built, update=update, **changes)


class _Spy:
    """Notes that an iteration has begun, and what each did."""

    def __init__(self) -> None:
        self.has_begun = False
        self.stats: list[UpdateStats] = []

    def on_rollout_start(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.has_begun = True

    def on_update_end(self, trainer: Any, pl_module: Any, stats: UpdateStats) -> None:
        self.stats.append(stats)


@dataclass
class Run:
    """What a run left."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    stats: list[UpdateStats]


class LateRefusalError(AssertionError):
    """A run was refused after its first iteration had begun."""


def fitted(case: Case, folder: Path, base: Path, *, iterations: int, resume: bool = False) -> Run | str:
    """Run a case; return what it left, or the line with which it was refused."""
    spy = _Spy()
    try:
        module = module_of(case, base)
        rule = PROMPTS[case["prompts"]]()
        callbacks: list[Any] = [spy, *([] if rule is None else [PromptSelection(rule)]), filter_of(case)]
        callbacks.append(EpisodeLog(keep_buffers=case["keep_buffers"] == "yes"))
        loop = tiny_loop(
            folder,
            module,
            callbacks=callbacks,
            fabric=Fabric(accelerator="cpu", devices=1, precision=case["precision"]),  # type: ignore[arg-type]
            max_iterations=iterations,
            resume=resume,
            data=tiny_data(batch_size=8 if case["dynamic"] != "no" or rule is not None else 4),
        )
        before = trainable(module)
        loop.fit()
    except UserError as error:
        if spy.has_begun:
            raise LateRefusalError(f"refused after the run had begun: {error}") from error
        return str(error)
    return Run(before, trainable(module), spy.stats)


def fault_of(case: Case, base: Path) -> str | None:
    """Run a case, and in two parts; return what is wrong, None if nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _fault_in(Path(folder), case, base)
        except Exception as error:  # every other end of a run is a fault, whatever it is
            return f"{type(error).__name__}: {error}"


def _fault_in(folder: Path, case: Case, base: Path) -> str | None:
    whole = fitted(case, folder / "whole", base, iterations=2)
    if isinstance(whole, str):
        return None if whole and "\n" not in whole else f"not one line: {whole!r}"
    fault = next((fault for stats in whole.stats if (fault := _fault_of_iteration(stats))), None)
    if fault is not None:
        return fault
    steps = sum(stats.optimizer_steps for stats in whole.stats)
    if same(whole.before, whole.after) == (steps > 0) and not _without_gradient(whole):
        return f"{steps} optimizer steps, and parameters moved: {not same(whole.before, whole.after)}"
    if len(whole.stats) < 2:  # on_empty: stop
        return None
    fitted(case, folder / "parts", base, iterations=1)
    resumed = fitted(case, folder / "parts", base, iterations=2, resume=True)
    if isinstance(resumed, str):
        return f"refused only when it is resumed: {resumed}"
    return None if same(whole.after, resumed.after) else "a resumed run is another one"


def _fault_of_iteration(stats: UpdateStats) -> str | None:
    weights = stats.plan.weights
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        return f"weights {weights.tolist()}"
    if not 0 <= stats.kept_fraction <= 1:
        return f"kept fraction {stats.kept_fraction}"
    broken = [name for name, value in stats.metrics.items() if not math.isfinite(value)]
    return f"not finite: {broken}" if broken and stats.optimizer_steps else None


def _without_gradient(run: Run) -> bool:
    """Whether the steps of a run had no gradient: each kept row has an advantage of 0."""
    return all(stats.metrics.get("update/gradient_norm", 0.0) == 0 for stats in run.stats)


def base_of_four_bit(folder: Path) -> Path:
    """Return the folder of a model that is wide enough for blocks of four-bit weights."""
    return nf4_base(folder)
