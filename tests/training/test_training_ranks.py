"""Two processes on one machine: other rollouts, one mean, one policy, however uneven what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_parts import prepared, tiny_module

SCRIPT = '''
import os, sys
from pathlib import Path
import torch
from lightning.fabric import Fabric

sys.path.insert(0, {folder!r})
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

out = Path(sys.argv[1])


class KeepThreeOnRankZero:
    """Rank 0 keeps three episodes, rank 1 none."""

    state_key = "keep"

    def state_dict(self):
        return {{}}

    def on_rollout_end(self, trainer, module, plan):
        weights = torch.zeros(len(plan.episodes))
        weights[: 3 if trainer.fabric.global_rank == 0 else 0] = 1
        plan.reweight(weights, reason="uneven")


def run(name, callbacks):
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    module = tiny_module(ppo={{"minibatch_size": 2, "micro_batch_size": 1}})
    loop = tiny_loop(out / name, module, callbacks=callbacks, fabric=fabric, data=tiny_data(batch_size=4))
    loop.fit()
    stats = module.last_stats
    torch.save(
        {{
            "parameters": trainable(module),
            "responses": list(stats.episodes.responses),
            "advantages": stats.episodes.advantages[stats.episodes.response_mask],
            "kept_share": stats.kept_share,
            "steps": stats.optimizer_steps,
            "metrics": dict(stats.metrics),
        }},
        out / f"{{name}}_{{fabric.global_rank}}.pt",
    )


run("uneven", [KeepThreeOnRankZero()])
run("plain", [])
'''


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "two_ranks.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name in ("uneven", "plain")
    }


@pytest.mark.parametrize("name", ["plain", "uneven"])
def test_two_ranks_sample_different_episodes_and_stay_equal(name: str, ranks: dict[str, list[dict]]) -> None:
    first, second = ranks[name]
    assert first["responses"] != second["responses"]
    assert all(torch.equal(first["parameters"][key], second["parameters"][key]) for key in first["parameters"])
    untrained = dict(tiny_module().named_parameters())
    assert any(not torch.equal(value, untrained[key]) for key, value in first["parameters"].items())


def test_ranks_agree_on_what_was_kept_and_take_as_many_steps(ranks: dict[str, list[dict]]) -> None:
    first, second = ranks["uneven"]
    assert first["kept_share"] == second["kept_share"] == 3 / 16
    assert first["steps"] == second["steps"] == 2
    assert first["metrics"]["update/policy_loss"] == second["metrics"]["update/policy_loss"]


def test_two_ranks_whiten_as_one(ranks: dict[str, list[dict]]) -> None:
    whole = torch.cat([rank["advantages"] for rank in ranks["plain"]]).double()
    assert abs(float(whole.mean())) < 1e-5
    assert abs(float(whole.var(correction=0)) - 1) < 1e-4
    # each half by itself is not white: it was the whole that was made so
    halves = [rank["advantages"].double() for rank in ranks["plain"]]
    assert max(abs(float(half.mean())) for half in halves) > 1e-4


def test_the_loss_of_two_ranks_is_that_of_one_with_all_the_episodes() -> None:
    """What a rank adds is its sum over the common denominator, so any split adds up to the undivided gradient."""
    from ippo_lightning.records import Minibatch

    module = tiny_module()
    episodes = prepared(module)

    def gradients(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        module.zero_grad()
        for rows in parts:
            minibatch = Minibatch(
                episodes=episodes.select(rows),
                weights=torch.ones(len(rows)),
                value_weights=torch.ones(len(rows)),
                policy_denominator=float(len(episodes)),
                value_denominator=float(len(episodes)),
            )
            module.minibatch_loss(minibatch)[0].backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    rows = torch.arange(len(episodes))
    for whole, halves in zip(gradients([rows]), gradients([rows[:5], rows[5:]]), strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)
