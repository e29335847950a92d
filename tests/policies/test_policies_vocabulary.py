"""The peak memory of a pass does not grow with the vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ippo_lightning.policies import head_blocks

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "vocabulary.py"
BLOCK_MIB = head_blocks.BLOCK_ENTRIES * 4 / 2**20
PER_BLOCK = 5.5
"""Blocks at a time in memory: logits, softmax, the entropy's product, and gradients of these."""


def peak_mib(stage: str, trained: str, vocabulary: int) -> float:
    case = {"vocabulary": vocabulary, "stage": stage, "trained": trained, "whole": False}
    command = [sys.executable, str(BENCHMARK), "--one", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("stage", ["log_probs", "scoring", "update"])
def test_a_pass_takes_one_block_more_than_its_hidden_states_whatever_the_vocabulary(stage: str, trained: str) -> None:
    # 1,024 response tokens: all their logits are 16 MiB with a vocabulary of 4k, and 512 MiB with 128k.
    small, large = (peak_mib(stage, trained, vocabulary) for vocabulary in (4096, 131072))
    # Full fine-tuning also forms one gradient of the head, 32 MiB here, before it is added to the others.
    weights = 2 * 131072 * 64 * 4 / 2**20 if trained == "full" else 0.0
    assert large <= small + PER_BLOCK * BLOCK_MIB + weights
    assert large < 512
