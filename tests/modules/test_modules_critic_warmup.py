"""The critic learns alone at first: the policy and its moments stay bit for bit, under each loop and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_free import critic_free_module
from lightning import Callback, Trainer, seed_everything
from recording import SEED
from training_parts import prepared, same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.algorithms import AdaptiveKLController, ValueLoss
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.modules.optimization import is_of_critic
from ippo_lightning.policies import LoraSettings
from ippo_lightning.records import Minibatch

WARMUP = 2
KINDS = {
    "head": {},
    "separate": {"value": "separate"},
    "head on an adapter": {"lora": LoraSettings(r=2)},
    "adapter": {"value": "adapter", "lora": LoraSettings(r=2)},
}


class Snapshots(Callback):
    """Keeps weights, moments, KL coefficient and plan of each iteration."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.moments: list[set[str]] = []
        self.changes: list[int] = []

    def on_update_end(self, trainer: Any, pl_module: PPOModule, stats: Any) -> None:
        self.weights.append(trainable(pl_module))
        state = pl_module.only_optimizer().state
        self.moments.append(
            {name for name, parameter in pl_module.trained_parameters().items() if state.get(parameter)}
        )
        self.changes.append(len(stats.plan.history))


def module_of(kind: str = "head", **changes: Any) -> PPOModule:
    update = {"num_epochs": 2, "critic_warmup_iterations": WARMUP, **changes.pop("update", {})}
    controller = AdaptiveKLController(coef=0.1, target=0.5, horizon=32)
    return tiny_module(policy=tiny_policy(**KINDS[kind]), update=update, kl_controller=controller, **changes)


def parts(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    critic = {name: value for name, value in weights.items() if is_of_critic(name)}
    return {name: value for name, value in weights.items() if name not in critic}, critic


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_critic_moves_in_its_warm_up(kind: str, tmp_path: Path) -> None:
    module, seen = module_of(kind), Snapshots()
    start, coefficient = trainable(module), module.kl_controller.coef
    loop = tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter(min_keep=1), seen], max_iterations=WARMUP + 1)
    loop.fit()
    policy, critic = parts(start)
    for weights, moments, changes in zip(seen.weights[:WARMUP], seen.moments, seen.changes, strict=False):
        assert same(parts(weights)[0], policy)
        assert not any(torch.equal(value, critic[name]) for name, value in parts(weights)[1].items())
        assert moments == set(critic), "the optimizer has a state of the critic alone"
        assert changes == 0, "nothing is filtered"
        critic = parts(weights)[1]
    assert not same(parts(seen.weights[-1])[0], policy)
    assert seen.moments[-1] == set(start)
    assert seen.changes[-1] > 0
    assert module.kl_controller.coef != coefficient
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["update/critic_only"] for line in lines] == [1.0, 1.0, 0.0]
    assert {line["rollout/kl_coef"] for line in lines} == {coefficient}


def test_the_critic_learns_as_from_its_own_loss_alone() -> None:
    module = module_of()
    episodes = prepared(module)
    ones = torch.ones(len(episodes))
    minibatch = Minibatch(
        episodes=episodes, weights=ones, value_weights=ones, policy_denominator=8.0, value_denominator=8.0
    )
    head = module.policy.value_parameters()
    loss, sums = module.minibatch_loss(minibatch)
    torch.testing.assert_close(loss.detach(), module.value_loss.coef * sums["value_loss"])
    found = torch.autograd.grad(loss, head, retain_graph=True)
    values = module.score(episodes, with_values=True).values
    terms = module.value_loss.terms(values, episodes)
    own = module.value_loss.coef * ((terms * episodes.mask).sum(1) / episodes.lengths).sum() / 8.0
    torch.testing.assert_close(found, torch.autograd.grad(own, head))


def test_a_run_interrupted_in_the_warm_up_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: str, iterations: int, **changes: Any) -> PPOModule:
        module = module_of()
        callbacks = [InfluenceFilter(min_keep=1)]
        tiny_loop(tmp_path / folder, module, callbacks=callbacks, max_iterations=iterations, **changes).fit()
        return module

    whole = run("whole", WARMUP + 2)
    run("broken", 1)
    resumed = run("broken", WARMUP + 2, resume=True)
    assert same(trainable(whole), trainable(resumed))
    assert whole.progress_state() == resumed.progress_state()


def test_trainer_and_fabric_give_the_same_weights(tmp_path: Path) -> None:
    ours = module_of()
    tiny_loop(tmp_path / "fabric", ours, max_iterations=WARMUP + 1, seed=SEED, checkpoint_every_n_iterations=0).fit()
    theirs = module_of()
    seed_everything(SEED, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=WARMUP + 1,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        **quiet,
    )
    trainer.fit(theirs, datamodule=tiny_data())
    assert same(trainable(ours), trainable(theirs))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: module_of(update={"critic_warmup_iterations": -1}), "update.critic_warmup_iterations: -1"),
        (lambda: module_of(value_loss=ValueLoss(coef=0.0)), "value_loss.coef: 0, and the critic learns alone"),
    ],
    ids=["negative", "coefficient"],
)
def test_a_warm_up_without_effect_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_a_policy_without_a_critic_has_nothing_to_warm_up() -> None:
    with pytest.raises(UserError, match=r"critic_warmup_iterations: 1, and the policy has no critic") as raised:
        critic_free_module("grpo", update={"critic_warmup_iterations": 1})
    assert "\n" not in str(raised.value)
