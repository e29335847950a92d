from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from ippo_lightning.report.rendering import Figure

PAIRS = {"ppo": (0.90, 0.44, 1.0), "random": (0.895, 0.42, 0.5), "ippo": (0.925, 0.20, 0.53)}
TITLES = {"sft": "SFT", "ppo": "PPO", "random": "Random half", "ippo": "I-PPO"}
LABELS = ("faithful", "false_positive", "shortcut", "nonsense", "wrong_answer")


def write_lines(path: Path, rows: list[dict], *, tail: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")


class FolderMaker:
    """Writes folders as runs leave them on disk, with numbers that follow from method and seed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, method: str, seed: int, *, iterations: int = 12, episodes: int = 40, finished: bool = True) -> Path:
        folder = self.root / method / f"seed_{seed}"
        folder.mkdir(parents=True)
        generator = random.Random(f"{method}{seed}")
        match, unfaithful, kept = PAIRS[method]
        (folder / "config.yaml").write_text(f"method: {method}\nseed: {seed}\n")
        history, evaluations, rows = [], [], []
        for iteration in range(iterations):
            history.append(self._iteration(generator, method, iteration, iterations, kept))
            if iteration % 3 == 2:
                evaluations.append(self._evaluation(generator, iteration, iterations, match, unfaithful))
            rows += self._episodes(generator, method, iteration, episodes, kept)
        write_lines(folder / "history.jsonl", history)
        write_lines(folder / "evaluations.jsonl", evaluations)
        write_lines(folder / "episodes.jsonl", rows)
        if finished:
            final = self._final(generator, match, unfaithful) | {"iterations": iterations, "seconds": 2.0 * iterations}
            (folder / "results.json").write_text(json.dumps(final))
        return folder

    def comparison(
        self, *, seeds: int = 3, methods: tuple[str, ...] = ("sft", "ppo", "random", "ippo"), **options
    ) -> Path:
        listed = {}
        for method in methods:
            used = [1] if method == "sft" else list(range(1, seeds + 1))
            baseline = "ppo" if "ppo" in methods and method != "ppo" else None
            listed[method] = {
                "title": TITLES[method],
                "seeds": used,
                "baseline": baseline,
                "featured": method == "ippo",
            }
            for seed in used:
                if method == "sft":
                    self._sft(seed)
                else:
                    self.run(method, seed, **options)
        self.list_methods(listed)
        return self.root

    def list_methods(self, methods: dict, **more) -> None:
        record = {
            "methods": methods,
            "command": "ippo compare --config experiments/arithmetic/compare.yaml",
            "config": "seeds: [1, 2, 3]\nmethods: [sft, ppo, random, ippo]\n",
            "versions": {"torch": "2.13.0", "lightning": "2.6.0"},
            "machine": "2 CPU cores",
        }
        self.root.mkdir(exist_ok=True)
        (self.root / "comparison.json").write_text(json.dumps(record | more))

    def _sft(self, seed: int) -> None:
        folder = self.root / "sft" / f"seed_{seed}"
        folder.mkdir(parents=True)
        final = self._final(random.Random(seed), 0.86, 0.44)
        (folder / "results.json").write_text(json.dumps(final))

    def _final(self, generator: random.Random, match: float, unfaithful: float) -> dict:
        match += generator.gauss(0, 0.006)
        return {
            "exact_match": match,
            "majority_vote": match + 0.02,
            "pass_at_k": match + 0.05,
            "unfaithful_fraction": unfaithful + generator.gauss(0, 0.03),
            "k": 4,
            "samples_per_prompt": 8,
            "num_prompts": 512,
        }

    def _iteration(self, generator, method, iteration, iterations, kept) -> dict:
        fraction = kept - (0.15 * iteration / iterations if method == "ippo" else 0.0)
        update = 1.6 * fraction
        row = {
            "iteration": iteration,
            "time/iteration_seconds": 0.7 + update + (0.25 if method == "ippo" else 0.0),
            "update/kept_fraction": fraction,
            "update/optimizer_steps": 16,
            "update/tokens_trained": 5120.0 * fraction,
            "rollout/reward_mean": 0.8 + 0.01 * iteration,
            "time/rollout_seconds": 0.6,
            "time/reward_seconds": 0.03,
            "time/update_seconds": update,
            "time/plan_seconds": 0.25 if method == "ippo" else 0.0001,
        }
        if method == "ippo":
            row["influence/effective_sample_size"] = 90 * fraction * math.exp(generator.gauss(0, 0.1))
            for name, place in {"q10": -1.0, "q25": -0.3, "median": 0.05, "q75": 0.5, "q90": 1.4}.items():
                row[f"influence/score_{name}"] = place * (1.5 - iteration / iterations)
        return row

    def _evaluation(self, generator, iteration, iterations, match, unfaithful) -> dict:
        progress = 1 - math.exp(-3 * iteration / iterations)
        return {
            "iteration": iteration,
            "split": "validation",
            "exact_match": 0.86 + (match - 0.86) * progress + generator.gauss(0, 0.004),
            "majority_vote": 0.9,
            "pass_at_k": 0.95,
            "unfaithful_fraction": 0.44 + (unfaithful - 0.44) * progress + generator.gauss(0, 0.02),
        }

    def _episodes(self, generator, method, iteration, count, kept) -> list[dict]:
        rows = []
        for _ in range(count):
            label = generator.choices(LABELS, weights=(50, 15, 10, 10, 15))[0]
            mean = {"faithful": 0.6, "wrong_answer": 0.1}.get(label, -0.5)
            score = generator.gauss(mean, 0.7) * 1e-2 if method == "ippo" else None
            weight = float(generator.random() < kept) if score is None else max(score, 0.0) / 5e-3
            first, second, third = (generator.randint(1, 20) for _ in range(3))
            total = first + second - third
            rows.append(
                {
                    "iteration": iteration,
                    "prompt": f"{first}+{second}-{third}?",
                    "response": f"{first}+{second}={first + second};{first + second}-{third}={total};#{total}",
                    "label": label,
                    "reward": float(label != "wrong_answer"),
                    "advantage": generator.gauss(0, 1),
                    "score": score,
                    "weight": weight,
                    "reasons": [] if weight == 1 else ["random" if score is None else "influence"],
                    "factors": [] if weight == 1 else [weight],
                }
            )
        return rows


@pytest.fixture(scope="session")
def folder_maker() -> type[FolderMaker]:
    return FolderMaker


@pytest.fixture
def folders(tmp_path: Path) -> FolderMaker:
    return FolderMaker(tmp_path / "comparison")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report draw nothing: figures take nearly all of its time, and most tests read its words only."""
    stub = Figure("reward", "A caption.", "an alternative text", "data:image/png;base64,")
    monkeypatch.setattr("ippo_lightning.report.writing.draw_figures", lambda *_, **__: {"reward": stub})


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report have four figures, which take a fraction of the time of all of them."""
    names = ("exact_match", "sft_loss", "results", "score_histogram")
    monkeypatch.setattr("ippo_lightning.report.all_figures.ALL_FIGURES", names)
