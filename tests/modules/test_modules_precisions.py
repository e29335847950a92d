"""Influence-guided PPO on four-bit weights, in mixed precision, and with a critic of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.plugins import MixedPrecision
from lightning.pytorch.plugins import MixedPrecision as TrainerMixedPrecision
from training_parts import TINY, same, tiny_data, tiny_loop, tiny_module, tiny_policy, trainable

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.policies import CausalLMPolicy, LoraSettings
from ippo_lightning.policies.quantized import is_quantized

HALF_PRECISION = 0.1
"""Of a gradient norm: because of rounding, the policy sometimes samples other tokens."""


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained model on disk, wide enough for blocks of four-bit weights."""
    folder = tmp_path_factory.mktemp("base")
    policy = tiny_policy(config={**TINY, "hidden_size": 64, "intermediate_size": 64}, value="none", reference="none")
    policy.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "scoring",
    [
        pytest.param({}, id="plain"),
        pytest.param({"adam_aware": True, "normalise": "cosine"}, id="adam, cosine", marks=pytest.mark.slow),
    ],
)
def test_four_bit_weights_train_their_adapters_and_nothing_else(
    base: Path, scoring: dict[str, Any], tmp_path: Path
) -> None:
    policy = CausalLMPolicy(pretrained=str(base), lora=LoraSettings(r=4), quantization="nf4")
    assert is_quantized(policy.language_model)
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    module = tiny_module(policy=policy)
    before = trainable(module)
    tiny_loop(
        tmp_path / "run", module, callbacks=[InfluenceFilter(scoring=ScoringSettings(**scoring))], max_iterations=2
    ).fit()
    moved = {name for name, value in trainable(module).items() if not torch.equal(value, before[name])}
    assert any("lora_B" in name for name in moved)
    assert all(torch.equal(p, frozen[name]) for name, p in policy.named_parameters() if not p.requires_grad)
    rows = history_of(tmp_path / "run")
    assert all(0 < row["influence/scored_kept_fraction"] < 1 for row in rows)
    assert rows[0]["update/approx_kl"] >= 0


@pytest.mark.parametrize("adapter", [None, 4], ids=["full", "lora"])
def test_mixed_precision_trains_and_scores(adapter: int | None, tmp_path: Path) -> None:
    policy = tiny_policy(lora=LoraSettings(r=adapter)) if adapter else tiny_policy()
    module = tiny_module(policy=policy)
    before = trainable(module)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    tiny_loop(tmp_path / "run", module, fabric=fabric, callbacks=[InfluenceFilter()]).fit()
    assert not same(before, trainable(module))
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in trainable(module).values())
    assert all(row["influence/gradient_norm"] > 0 for row in history_of(tmp_path / "run"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("weights", ["bfloat16", "nf4 computing in bfloat16", "int8"])
def test_adapters_on_a_coarse_base_are_scored(base: Path, weights: str, seed: int, tmp_path: Path) -> None:
    """The adapters are float32. The base under them rounds, and the check of the scores must know it."""
    lora = LoraSettings(r=2)
    if weights == "bfloat16":
        policy = tiny_policy(config={**TINY, "num_hidden_layers": 2}, dtype="bfloat16", lora=lora, seed=seed)
    else:
        compute = {"compute_dtype": "bfloat16"} if "nf4" in weights else {}
        kind: Any = weights.split()[0]
        policy = CausalLMPolicy(pretrained=str(base), lora=lora, quantization=kind, seed=seed, **compute)
    assert {parameter.dtype for parameter in policy.policy_parameters()} == {torch.float32}
    tiny_loop(tmp_path / "run", tiny_module(policy=policy), callbacks=[InfluenceFilter()]).fit()
    assert all(0 < row["influence/scored_kept_fraction"] < 1 for row in history_of(tmp_path / "run"))


def half_precision(*, scale: float) -> MixedPrecision:
    """Float16 with scaled gradients, which Lightning offers by name on a GPU only."""
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def test_scaled_gradients_are_clipped_and_reported_unscaled(tmp_path: Path) -> None:
    norms = {}
    for name in ("fabric", "trainer", "single"):
        module = tiny_module(update={"minibatch_size": 16}, optimizer=OptimizerSettings(learning_rate=1e-4))
        if name == "trainer":
            plugin = TrainerMixedPrecision("16-mixed", device="cpu")
            seed_everything(5, verbose=False)
            trainer = Trainer(
                accelerator="cpu",
                plugins=[plugin],
                max_epochs=1,
                limit_train_batches=1,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, datamodule=tiny_data())
        else:
            plugins = [half_precision(scale=65536.0)] if name == "fabric" else []
            fabric = Fabric(accelerator="cpu", devices=1, plugins=plugins)
            tiny_loop(tmp_path / name, module, fabric=fabric, max_iterations=1).fit()
        assert module.last_stats is not None
        norms[name] = module.last_stats.metrics["update/gradient_norm"]
    assert norms["fabric"] == pytest.approx(norms["single"], rel=HALF_PRECISION)
    assert norms["trainer"] == pytest.approx(norms["fabric"], rel=1e-3)


def test_a_step_that_overflows_in_half_precision_is_skipped_and_the_scale_kept_in_checkpoints(tmp_path: Path) -> None:
    module = tiny_module()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[half_precision(scale=2.0**40)])
    tiny_loop(tmp_path / "run", module, fabric=fabric, max_iterations=2).fit()
    assert module.last_stats is not None
    assert not math.isfinite(module.last_stats.metrics["update/gradient_norm"])
    scale = module.backend.scaler.get_scale()
    assert scale < 2.0**40
    resumed = tiny_module()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[half_precision(scale=2.0)])
    loop = tiny_loop(tmp_path / "run", resumed, fabric=fabric, max_iterations=2, resume=True)
    loop.set_up()
    assert resumed.backend.scaler.get_scale() == scale


def test_a_critic_of_its_own_never_counts_in_a_score(tmp_path: Path) -> None:
    module = tiny_module(policy=tiny_policy(value="separate"))
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter()]).fit()
    first = history_of(tmp_path / "run")[0]
    assert first["update/value_loss"] > 0
    assert "influence/part_other" not in first


def test_any_lightning_logger_gets_the_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(root_dir=tmp_path / "csv", name="run", version="0", flush_logs_every_n_steps=1)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    tiny_loop(tmp_path / "run", tiny_module(), fabric=fabric, callbacks=[InfluenceFilter()]).fit()
    logger.finalize("success")
    table = (tmp_path / "csv" / "run" / "0" / "metrics.csv").read_text(encoding="utf-8")
    assert "influence/gradient_norm" in table.splitlines()[0]
    assert len(table.splitlines()) == 3
