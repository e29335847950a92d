"""Logits are the largest tensors of a language model; no stage of an iteration holds those of the whole buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from training_parts import tiny_data, tiny_loop, tiny_module

from ippo_lightning.callbacks import InfluenceFilter, ScoringSettings

EPISODES, MICRO_BATCH, RESPONSE = 32, 4, 8


def test_no_stage_makes_logits_of_more_than_a_micro_batch(tmp_path: Path) -> None:
    module = tiny_module(update={"minibatch_size": 16, "micro_batch_size": MICRO_BATCH})
    positions: list[int] = []
    head = module.policy.language_model.get_output_embeddings()
    head.register_forward_hook(lambda layer, inputs, output: positions.append(output.shape[:-1].numel()))
    scoring = ScoringSettings(max_tokens=64, health_every_n_iterations=0)
    data = tiny_data(batch_size=EPISODES // 2, evaluation_batch_size=2)
    tiny_loop(tmp_path / "run", module, data=data, callbacks=[InfluenceFilter(scoring=scoring)], max_iterations=1).fit()
    whole = EPISODES * RESPONSE
    # scoring may take as many tokens as it was told, the rest a micro-batch; sampling one position an episode
    assert max(positions) <= max(64, MICRO_BATCH * (RESPONSE + 1), EPISODES) < whole


def test_float32_copies_of_logits_are_made_chunk_by_chunk(tmp_path: Path, monkeypatch: Any) -> None:
    import ippo_lightning.maths.log_probs as log_probs

    module = tiny_module()
    vocabulary = module.policy.language_model.config.vocab_size
    monkeypatch.setattr(log_probs, "_CHUNK_ENTRIES", 3 * vocabulary)
    seen: list[int] = []
    honest = log_probs._log_softmax

    def watched(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        seen.append(logits.numel())
        return honest(logits, temperature)

    monkeypatch.setattr(log_probs, "_log_softmax", watched)
    tiny_loop(tmp_path / "run", module, callbacks=[InfluenceFilter()], max_iterations=1).fit()
    assert seen
    assert max(seen) <= 3 * vocabulary
