"""The loop: under Fabric and under Trainer, interrupted, failing, subclassed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from training_parts import same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.algorithms import AdaptiveKLController
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import TextDataModule
from ippo_lightning.engine import UpdateSettings
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings, PPOModule, SFTModule
from ippo_lightning.modules.optimization import build_optimizer, learning_rate_factor
from ippo_lightning.policies import LoraSettings, SamplingSettings
from ippo_lightning.records import TextEpisodes
from ippo_lightning.tasks import ArithmeticTask, grade_arithmetic


def test_evaluation_under_trainer_logs_the_metrics(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (metrics,) = trainer.validate(tiny_module(), datamodule=tiny_data(), verbose=False)
    assert set(metrics) >= {"eval/exact_match", "eval/label/faithful"}


def test_the_kept_policy_gets_better_at_an_easy_reward(tmp_path: Path) -> None:
    module = tiny_module(
        update={"num_epochs": 4, "minibatch_size": 16},
        optimizer=OptimizerSettings(learning_rate=1e-2),
        reward=lambda prompts, responses, examples: [float(text.count("7")) for text in responses],
    )
    data = tiny_data(batch_size=16)
    tiny_loop(tmp_path / "run", module, max_iterations=12, data=data).fit()
    rewards = [
        json.loads(line)["rollout/reward_mean"] for line in (tmp_path / "run" / "history.jsonl").open(encoding="utf-8")
    ]
    assert sum(rewards[-3:]) > 3 * sum(rewards[:3]) + 0.5


def test_sft_learns_its_demonstrations(tmp_path: Path) -> None:
    module = SFTModule(
        policy=tiny_policy(value="none", reference="none"),
        grader=grade_arithmetic,
        evaluation=SamplingSettings(num_responses=1, max_new_tokens=8),
        optimizer=OptimizerSettings(learning_rate=1e-2, schedule="cosine", warmup_iterations=2),
        micro_batch_size=5,
    )
    task = ArithmeticTask(num_train=64, num_demonstrations=64, num_validation=4, num_test=4)
    data = TextDataModule(task, stage="sft", batch_size=16)
    tiny_loop(tmp_path / "run", module, max_iterations=20, data=data).fit()
    losses = [json.loads(line)["sft/loss"] for line in (tmp_path / "run" / "history.jsonl").open(encoding="utf-8")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_subclass_that_changes_one_stage_is_used(tmp_path: Path) -> None:
    class NoReward(PPOModule):
        def compute_rewards(self, episodes: TextEpisodes) -> TextEpisodes:
            nothing = torch.zeros_like(episodes.log_probs)
            return episodes.evolve(outcome_rewards=torch.zeros(len(episodes)), rewards=nothing)

    plain = tiny_module()
    module = NoReward(
        policy=tiny_policy(), reward=plain.reward, sampling=plain.sampling, update=UpdateSettings(minibatch_size=8)
    )
    tiny_loop(tmp_path / "run", module).fit()
    assert module.last_stats is not None
    assert module.last_stats.metrics["rollout/reward_mean"] == 0


def test_adapters_train_and_leave_base_and_reference_alone(tmp_path: Path) -> None:
    module = tiny_module(policy=tiny_policy(lora=LoraSettings(r=2)))
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    before = trainable(module)
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter()]).fit()
    assert all(torch.equal(dict(module.named_parameters())[name], value) for name, value in frozen.items())
    assert not same(before, trainable(module))


def test_evaluation_leaves_the_random_stream_of_training_alone(tmp_path: Path) -> None:
    runs = []
    for every in (0, 1):
        module = tiny_module()
        tiny_loop(tmp_path / str(every), module, evaluate_every_n_iterations=every, evaluate_first=bool(every)).fit()
        runs.append(trainable(module))
    assert same(*runs)


def test_the_controller_of_the_kl_penalty_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    def adaptive() -> PPOModule:
        return tiny_module(kl_controller=AdaptiveKLController(coef=0.1, target=0.5, horizon=32))

    whole, broken, resumed = adaptive(), adaptive(), adaptive()
    tiny_loop(tmp_path / "whole", whole, max_iterations=4).fit()
    tiny_loop(tmp_path / "broken", broken, max_iterations=2).fit()
    tiny_loop(tmp_path / "broken", resumed, max_iterations=4, resume=True).fit()
    assert whole.kl_controller.coef == resumed.kl_controller.coef != 0.1
    assert same(trainable(whole), trainable(resumed))


def test_ctrl_c_finishes_the_iteration_and_writes_a_checkpoint(tmp_path: Path) -> None:
    class PressCtrlC:
        state_key = "press"

        def state_dict(self) -> dict[str, Any]:
            return {}

        def on_rollout_end(self, trainer: Any, module: Any, plan: Any) -> None:
            if module.iteration == 1:
                os.kill(os.getpid(), signal.SIGINT)

    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    before = signal.getsignal(signal.SIGINT)
    module = tiny_module()
    loop = tiny_loop(
        tmp_path / "run", module, callbacks=[PressCtrlC()], max_iterations=9, checkpoint_every_n_iterations=0
    )
    with pytest.raises(KeyboardInterrupt, match="after iteration 2"):
        loop.fit()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["progress"]["iteration"] == 2
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, own)


def test_a_strategy_that_shards_parameters_is_refused_in_one_line(tmp_path: Path) -> None:
    strategy = ModelParallelStrategy(lambda model, mesh: model)
    fabric = Fabric(accelerator="cpu", devices=1, strategy=strategy)
    with pytest.raises(UserError, match=r"ModelParallelStrategy shards the parameters.*use fsdp2, or ddp"):
        tiny_loop(tmp_path / "run", tiny_module(), fabric=fabric).fit()


def test_the_optimizer_has_the_settings_it_was_given() -> None:
    settings = OptimizerSettings(
        learning_rate=3e-4, value_learning_rate=2e-3, betas=(0.8, 0.9), epsilon=1e-5, weight_decay=0.1
    )
    optimizer = build_optimizer(tiny_module().trained_parameters(), settings)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 2e-3]
    assert all(
        (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-5, 0.1)
        for group in optimizer.param_groups
    )
    assert len(optimizer.param_groups[1]["params"]) == 2  # the value head's weight and bias


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_an_optimizer_of_bitsandbytes_trains_and_its_state_is_kept(kind: Any, tmp_path: Path) -> None:
    def module() -> PPOModule:
        return tiny_module(optimizer=OptimizerSettings(kind=kind, learning_rate=1e-3))

    whole, broken, resumed = module(), module(), module()
    before = trainable(whole)
    tiny_loop(tmp_path / "whole", whole, max_iterations=4).fit()
    assert not same(before, trainable(whole))
    names = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
    assert type(whole.configure_optimizers()).__name__ == names[kind]
    tiny_loop(tmp_path / "broken", broken, max_iterations=2).fit()
    tiny_loop(tmp_path / "broken", resumed, max_iterations=4, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.kind: 'lion' is unknown; expected one of adamw, adamw_8bit"):
        OptimizerSettings(kind="lion")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: Any, factors: list[float]) -> None:
    settings = OptimizerSettings(schedule=schedule, warmup_iterations=2)
    measured = [learning_rate_factor(settings, iteration=iteration, total=6) for iteration in range(5)]
    assert measured == pytest.approx(factors, rel=1e-5)


@pytest.mark.parametrize(("given", "chosen", "expected"), [(None, "7", 7), (3, "7", 3), (None, None, 0)])
def test_a_loop_without_a_seed_takes_that_of_seed_everything(
    given: int | None, chosen: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if chosen is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", chosen)
    assert tiny_loop(tmp_path, tiny_module(), seed=given).seed == expected
