"""Prompt rules on two processes: what they learn from rows of each, and a run with batches of different sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.fabric import Fabric
from small_episodes import make_episodes
from training_parts import tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.callbacks import PromptSelection
from ippo_lightning.data import TextDataModule
from ippo_lightning.records import TextEpisodes
from ippo_lightning.selection import IntermediateDifficulty, SampledRows, SourceBandit
from ippo_lightning.selection.prompt_choice import sampled_rows

LENGTHS = [3, 2, 4, 1, 2]
HALVES = (list(range(3)), list(range(3, 5)))


def learned(rows: list[int]) -> tuple[SampledRows, SourceBandit]:
    """What a bandit knows after a rollout of which this process has some rows, of three sources."""
    episodes: TextEpisodes = make_episodes([1] * len(LENGTHS), LENGTHS).select(torch.tensor(rows))
    rule = SourceBandit(source="kind")
    found = sampled_rows(rule, episodes.evolve(examples=tuple({"kind": "abaca"[row]} for row in rows)))
    rule.learn(found)
    return found, rule


class ByParity(SourceBandit):
    """Two sources, of which the better one is drawn: a run that forgets what it has learned draws another one."""

    def __init__(self) -> None:
        super().__init__(source="answer", temperature=1e-3)

    def key(self, prompt: str, example: Any) -> str:
        return str(int(super().key(prompt, example)) % 2)


class Uneven(TextDataModule):
    """Batches of 8 prompts on rank 0, of 3 on rank 1."""

    def __init__(self, rank: int) -> None:
        super().__init__(tiny_data().task, batch_size=8)
        self.count = (8, 3)[rank]

    def train_dataloader(self) -> Any:
        cut = [{name: column[: self.count] for name, column in batch.items()} for batch in super().train_dataloader()]
        return cut[:3]


class Sampled(Callback):
    """Remembers the prompts that were sampled."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def on_rollout_end(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.prompts.append(sorted(set(plan.episodes.prompts)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    rank = fabric.global_rank
    found, rule = learned(HALVES[rank])
    numbers: dict[str, Any] = {"keys": found.keys, "advantages": found.advantages.tolist()}
    numbers["state"] = {name: {str(key): own for key, own in part.items()} for name, part in rule.state_dict().items()}

    def fitted(name: str, rule: Any, **changes: Any) -> None:
        module, sampled = tiny_module(), Sampled()
        callbacks = [PromptSelection(rule), sampled]
        changes = {"max_iterations": 2, **changes}
        tiny_loop(folder / name, module, fabric=fabric, data=Uneven(rank), callbacks=callbacks, **changes).fit()
        torch.save(trainable(module), folder / f"{name}.rank{rank}.pt")
        assert module.last_stats is not None
        prompts = ("rollout/prompts_offered", "rollout/prompts_sampled")
        numbers[name] = {"prompts": sampled.prompts, "numbers": [module.last_stats.metrics[key] for key in prompts]}

    fitted("predicted", IntermediateDifficulty())
    fitted("sources", ByParity())
    fitted("broken", ByParity(), max_iterations=1)
    fitted("broken", ByParity(), resume=True)
    (folder / f"rank{rank}.json").write_text(json.dumps(numbers), encoding="utf-8")
