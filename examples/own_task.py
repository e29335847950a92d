"""A task of your own: sort the letters of a word; with a grader and a reward, on a tiny model, in seconds.

python examples/own_task.py
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric import Fabric, seed_everything

from ippo_lightning import FabricLoop, PPOModule
from ippo_lightning.callbacks import InfluenceFilter
from ippo_lightning.data import TextDataModule, byte_tokenizer
from ippo_lightning.policies import CausalLMPolicy, SamplingSettings
from ippo_lightning.run.settings import LoopSettings
from ippo_lightning.tasks import Grade

SIZES = {"prompts": 64, "demonstrations": 64, "validation": 8, "test": 8, "influence": 8}


class SortingTask:
    """Prompts such as `dbca=`, answered `abcd`."""

    def __init__(self, letters: str = "abcdef", length: int = 4, seed: int = 0) -> None:
        """Draw words; the same seed gives the same words."""
        generator = random.Random(seed)
        words = ["".join(generator.sample(letters, length)) for _ in range(sum(SIZES.values()))]
        self.words = {split: [words.pop() for _ in range(size)] for split, size in SIZES.items()}

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Return prompts with their answers; demonstrations have a response too."""
        rows = [{"prompt": f"{word}=", "example": {"answer": "".join(sorted(word))}} for word in self.words[split]]
        if split in ("demonstrations", "influence"):
            rows = [{**row, "response": row["example"]["answer"]} for row in rows]
        return rows

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> Grade:
        """Compare with the answer; the label tells what went wrong."""
        answer = response.strip()[:20]  # a model may write anything: bound what you read
        if answer == example["answer"]:
            return Grade(True, "sorted", answer)
        same_letters = sorted(answer) == list(example["answer"])
        return Grade(False, "wrong_order" if same_letters else "other_letters", answer)


def letters_in_place(
    prompts: Sequence[str], responses: Sequence[str], examples: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Reward the fraction of letters that are in their place, which is easier to earn than the full answer."""
    pairs = zip(responses, (example["answer"] for example in examples), strict=True)
    return [sum(a == b for a, b in zip(text, answer, strict=False)) / len(answer) for text, answer in pairs]


def main() -> None:
    """Train for three iterations and print the test metrics."""
    seed_everything(1, verbose=False)
    tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    policy = CausalLMPolicy(config={**tiny, "num_attention_heads": 2}, tokenizer=byte_tokenizer())
    task = SortingTask()
    sampling = SamplingSettings(num_responses=4, max_new_tokens=5)
    module = PPOModule(policy=policy, reward=letters_in_place, grader=task.grade, sampling=sampling)
    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(run_dir=folder, max_iterations=3, evaluate_first=False, save_model=False)
        data = TextDataModule(task, batch_size=16)
        loop = FabricLoop(Fabric(accelerator="cpu"), module, data, callbacks=[InfluenceFilter()], settings=settings)
        print(loop.fit())


if __name__ == "__main__":
    main()
