"""Each layer learns from the rows whose gradient in that layer agrees with the target's: against plain autograd."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from training_parts import TINY, prepared, same, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.engine import run_update
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.records import Minibatch, UpdatePlan
from ippo_lightning.selection import ActivationDifference, DropNegatives, LeaveOneOutMean, ReturnOfBuffer
from ippo_lightning.selection.layer_scores import layer_of

EXACT = 1e-8  # float64, but the models' norms and softmax compute in float32
RATE = 0.01
LAYERS: dict[str, Any] = {"score_at": "layer", "power": 0.0}


def exact_module(*, policy: CausalLMPolicy | None = None, **update: Any) -> PPOModule:
    """In float64, with plain gradient steps: the parameters after one tell its gradient."""
    module = tiny_module(
        policy=policy,
        update={"minibatch_size": 16, "micro_batch_size": 3, "max_grad_norm": None, **update},
        optimizer=OptimizerSettings(kind="sgd", learning_rate=RATE),
    )
    return module.double()


def begun(folder: Path, module: PPOModule) -> tuple[Any, Any]:
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    loop = tiny_loop(folder / "run", module, fabric=fabric)
    loop.set_up()
    torch.manual_seed(0)
    return loop, prepared(module, num_prompts=3)


def gradients(module: PPOModule, loss: Tensor) -> dict[str, Tensor]:
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def owner_of(name: str) -> str:
    """The module of a parameter, or the one that its adapter changes; without code of the library."""
    parts = name.split(".")
    adapter = next((number for number, part in enumerate(parts) if part.startswith("lora_")), len(parts) - 1)
    return ".".join(parts[:adapter])


def is_of_policy(name: str) -> bool:
    return "critic" not in name and "value_head" not in name


def kept_by_definition(loop: Any, module: PPOModule, rows: Any) -> dict[str, Tensor]:
    """Return for each parameter which rows it learns from."""
    batches = list(loop.datamodule.influence_dataloader())
    sizes = [len(batch["prompts"]) for batch in batches]
    target: dict[str, Tensor] = {}
    for batch, size in zip(batches, sizes, strict=True):
        for name, part in gradients(module, module.validation_loss(batch) * size / sum(sizes)).items():
            target[name] = target.get(name, 0) + part
    scores: dict[str, Tensor] = {name: torch.zeros(len(rows), dtype=torch.float64) for name in map(owner_of, target)}
    for row in range(len(rows)):
        for name, part in gradients(module, module.episode_losses(rows.select([row]))[0]).items():
            scores[owner_of(name)][row] += (part * target[name]).sum()
    return {
        name: scores[owner_of(name)] > 0 if target[name].any() else torch.ones(len(rows), dtype=torch.bool)
        for name in target
    }


def step_by_definition(module: PPOModule, rows: Any, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of a step, row by row."""
    settings = module.update_settings
    by_tokens = settings.loss_reduction == "token_mean"
    sizes = rows.lengths.double() if by_tokens else torch.ones(len(rows), dtype=torch.float64)
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters() if p.requires_grad}
    one = torch.ones(1)
    for row in range(len(rows)):
        alone = Minibatch(
            episodes=rows.select([row]),
            weights=one,
            value_weights=one,
            policy_denominator=float(sizes.sum()),
            value_denominator=float(sizes.sum()),
        )
        for name, part in gradients(module, module.minibatch_loss(alone)[0]).items():
            if keep[name][row]:
                total[name] += part
    if settings.denominator == "kept":
        for name, part in total.items():
            part *= float(sizes.sum() / sizes[keep[name]].sum().clamp(min=1))
    return total


def updated(loop: Any, module: PPOModule, rows: Any, **settings: Any) -> UpdatePlan:
    """Run an update with a choice by layer; return its plan, and leave its outcome in the module."""
    callback = InfluenceFilter(**{**LAYERS, **settings})
    callback.setup(loop, module, "fit")
    callback.on_fit_start(loop, module)
    plan = UpdatePlan(episodes=rows)
    callback.on_rollout_end(loop, module, plan)
    plan.sealed = True
    module.outcome = run_update(
        module,
        plan,
        module.update_settings,
        on_minibatch=lambda part: callback.on_minibatch_start(loop, module, part),
    )
    return plan


POLICIES: dict[str, dict[str, Any]] = {
    "head": {},
    "tied": {"config": {**TINY, "tie_word_embeddings": True}},
    "lora": {"lora": LoraSettings(r=2)},
    "adapter": {"lora": LoraSettings(r=2), "value": "adapter"},
}


CASES = [
    ("head", {}),
    ("head", {"denominator": "all"}),
    ("head", {"loss_reduction": "token_mean"}),
    ("tied", {}),
    ("lora", {}),
    ("adapter", {}),
]


@pytest.mark.parametrize(("kind", "update"), CASES, ids=[f"{kind} {' '.join(update)}" for kind, update in CASES])
def test_a_step_is_made_of_the_kept_rows_of_each_layer(kind: str, update: dict[str, Any], tmp_path: Path) -> None:
    module = exact_module(policy=tiny_policy(**POLICIES[kind]), **update)
    with torch.no_grad():  # without noise LoRA's A has no gradient, and no score
        for parameter in module.trained_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loop, rows = begun(tmp_path, module)
    keep = kept_by_definition(loop, module, rows)
    fractions = {owner_of(name): float(kept.double().mean()) for name, kept in keep.items() if is_of_policy(name)}
    assert len(set(fractions.values())) > 2, "the layers choose different rows"
    expected, before = step_by_definition(module, rows, keep), trainable(module)
    plan = updated(loop, module, rows)
    for name, after in trainable(module).items():
        torch.testing.assert_close((before[name] - after) / RATE, expected[name], rtol=0, atol=EXACT, msg=name)
    assert plan.keep.all(), "rows as a whole are not dropped"
    chosen = list(fractions.values())
    assert plan.metrics["influence/layer_kept_min"] == pytest.approx(min(chosen))
    mean = pytest.approx(sum(chosen) / len(chosen))
    assert [plan.metrics["influence/scored_kept_fraction"], module.outcome.kept_fraction] == [mean, mean]


def test_layers_that_keep_all_rows_give_the_update_without_a_filter_bit_for_bit(tmp_path: Path) -> None:
    found = []
    for number, settings in enumerate(({"threshold": -1e30}, {"threshold": 0.0}, {"monitor_only": True})):
        module = tiny_module(update={"minibatch_size": 6, "micro_batch_size": 4, "num_epochs": 2})
        loop = tiny_loop(tmp_path / str(number), module)
        loop.set_up()
        torch.manual_seed(0)
        rows = prepared(module)
        torch.manual_seed(1)
        plan = updated(loop, module, rows, **settings)
        found.append(trainable(module))
    assert same(found[0], found[2])
    assert not same(found[0], found[1])
    assert "influence/layer_kept_mlp" in plan.metrics, "also if nothing is changed"


def test_a_layer_without_rows_is_left_alone_and_the_log_says_so(tmp_path: Path) -> None:
    module = tiny_module(update={"minibatch_size": 16, "micro_batch_size": 16, "num_epochs": 2})
    loop = tiny_loop(tmp_path, module)
    loop.set_up()
    rows, before = prepared(module), trainable(module)
    plan = updated(loop, module, rows, threshold=1e30)
    after = trainable(module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(is_of_policy(name) for name in changed), changed
    layers = {owner_of(name) for name in before if is_of_policy(name)}
    assert plan.metrics["influence/layers_without_rows"] == len(layers)
    assert plan.metrics["influence/scored_kept_fraction"] == 0
    again = tiny_module(update={"minibatch_size": 16, "micro_batch_size": 16, "num_epochs": 2})
    loop = tiny_loop(tmp_path / "all", again)
    loop.set_up()
    plan = updated(loop, again, rows, threshold=1e30, on_empty="keep_all")
    assert plan.metrics["influence/scored_kept_fraction"] == 1


@pytest.mark.parametrize("name", ["random", "drop", "min_keep"])
def test_other_rules_choose_by_layer(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "random": {"rule": "random"},
        "drop": {"rule": DropNegatives(fraction=0.5), "power": None, "target": LeaveOneOutMean()},
        "min_keep": {"threshold": 1e30, "min_keep": 2, "target": ReturnOfBuffer()},
    }[name]
    settings = {"power": None, **settings} if name == "random" else settings
    module = tiny_module(update={"minibatch_size": 8})
    loop = tiny_loop(tmp_path, module)
    loop.set_up()
    plan = updated(loop, module, prepared(module), **settings)
    fraction = plan.metrics["influence/scored_kept_fraction"]
    assert fraction == pytest.approx(0.25) if name == "min_keep" else 0 < fraction < 1


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    def run(folder: str, iterations: int, *, resume: bool = False) -> PPOModule:
        module = tiny_module(update={"minibatch_size": 5, "num_epochs": 2})
        callbacks = [InfluenceFilter(**LAYERS)]
        tiny_loop(tmp_path / folder, module, callbacks=callbacks, max_iterations=iterations, resume=resume).fit()
        return module

    whole = run("whole", 2)
    run("parts", 1)
    assert same(trainable(whole), trainable(run("parts", 2, resume=True)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "reward", "power": None}, "layer, and reward reads no scores, so it decides alike for each layer"),
        ({"power": None}, "layer, and influence weighs rows, while a layer learns from a row or does not; set power"),
        (
            {"scoring": ScoringSettings(method="per_episode")},
            "only scoring.method: hooks splits scores by layer; got",
        ),
        ({"scoring": ScoringSettings(normalise="cosine")}, "scores of a layer have no cosine; set scoring.normalise"),
        ({"drop_when": "all"}, "drop_when: all reads scores of whole rows; use mean"),
        ({"on_empty": "stop"}, "on_empty: stop is about whole rows; use skip or keep_all"),
        (
            {"target": ActivationDifference()},
            "ActivationDifference takes no gradients, which alone have a part",
        ),
        ({"whole_groups": "mean"}, "layer, and whole_groups mean reads groups"),
    ],
)
def test_what_makes_no_sense_for_a_layer_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InfluenceFilter(**{**LAYERS, **changes})


def test_runs_in_which_layers_cannot_learn_from_different_rows_are_refused() -> None:
    callback = InfluenceFilter(**LAYERS)
    module = tiny_module(update={"train_value_on_dropped": True})
    with pytest.raises(UserError, match=r"update\.train_value_on_dropped: true, and with score_at: layer"):
        callback.setup(SimpleNamespace(callbacks=[callback]), module, "fit")
    with pytest.raises(UserError, match="score_at: layer, in 2 filters; expected one"):
        callback.setup(SimpleNamespace(callbacks=[callback, InfluenceFilter(**LAYERS)]), tiny_module(), "fit")
    with pytest.raises(UserError, match="layer needs a module whose update calls on_minibatch_start"):
        callback.apply(torch.nn.Linear(1, 1), {"rewards": torch.ones(2), "weights": torch.ones(2)})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("policy.network.layers.0.q_proj.weight", "policy.network.layers.0.q_proj"),
        ("layers.0.q_proj.lora_B.default.weight", "layers.0.q_proj"),
        ("weight", ""),
    ],
)
def test_the_layer_of_an_adapter_is_the_one_that_it_changes(name: str, layer: str) -> None:
    assert layer_of(name) == layer
