r"""The same scores by two outside implementations, kronfluence and bergson: do they agree, and what do they cost?

    python -m venv --system-site-packages /tmp/outside    # over an environment that has this package
    /tmp/outside/bin/pip install --no-deps kronfluence==1.0.1 einconv einops opt_einsum \
        bergson==2.5.1 simple-parsing docstring-parser jaxtyping wadler-lindig natsort petname torchopt ml_dtypes scipy
    /tmp/outside/bin/python benchmarks/outside.py

LoRA only: both track linear layers and know neither embeddings nor norms. kronfluence, with the identity in the place
of the Hessian, is given the mean loss of the demonstrations as its query and takes the target gradient itself; it is
made for offline use, wraps the model for good and writes its results to disk. bergson's collector of gradients is
handed the direction and runs around our own forward and backward, since its own loop knows no advantage per token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from bergson import GradientProcessor, IndexConfig, InMemoryCollector, Scorer
from bergson.score.score_writer import InMemorySequenceScoreWriter
from datasets import Dataset as Table
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from scoring_case import Batch, Case, build_case, demonstrations_of, episode_losses, error_and_signs, mean_loss
from torch import Tensor, nn
from torch.utils.data import Dataset

from ippo_lightning.influence import influence_scores


class Rows(Dataset[dict[str, Tensor]]):
    """Episodes one by one."""

    def __init__(self, batches: list[Batch]) -> None:
        self.columns = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in Batch._fields}

    def __len__(self) -> int:
        return len(self.columns["ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Influence(Task):
    """What kronfluence asks of a user: the training loss, the query's loss, the modules."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Return the summed policy losses of the episodes."""
        return episode_losses(model, Batch(**batch)).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """Return the mean loss of the demonstrations, which come as one batch."""
        return mean_loss(model, Batch(**batch))

    def get_influence_tracked_modules(self) -> list[str]:
        """Return the adapters' linear layers."""
        return self.modules


def main() -> None:
    """Compare once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = build_case(
        adapter=True,
        tokens=options.tokens,
        episodes=options.episodes,
        hidden_size=256,
        num_layers=6,
        tokens_per_batch=32 * options.tokens,
    )
    ours = [timed(lambda: influence_scores(case.model, case.losses, case.batches, case.direction)) for _ in range(3)]
    plain = [
        timed(lambda: [case.losses(case.model, batch).sum().backward() for batch in case.batches]) for _ in range(3)
    ]
    modules = [name for name, module in case.model.named_modules() if "lora_" in name and isinstance(module, nn.Linear)]
    streamed = [timed(lambda: collected(case, modules)) for _ in range(options.rounds)]
    task = Influence(modules)
    model = prepare_model(case.model, task)
    theirs = [timed(lambda: pairwise(model, task, case.batches, options.tokens)) for _ in range(options.rounds)]
    yardstick = statistics.median(seconds for seconds, _ in plain)
    for name, found in (("ippo_lightning hooks", ours), ("bergson", streamed), ("kronfluence", theirs)):
        error, signs = error_and_signs(found[0][1].flatten(), ours[0][1])
        seconds = statistics.median(taken for taken, _ in found) / yardstick
        print(f"{name}: {seconds:.2f} forward + backward, largest difference {error:.0e}, signs alike {signs:.3f}")


def timed(action: Any) -> tuple[float, Any]:
    """Return seconds and result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def collected(case: Case, modules: list[str]) -> Tensor:
    """Return bergson's scores, shape [episodes, 1]."""
    count = sum(len(batch.ids) for batch in case.batches)
    writer = InMemorySequenceScoreWriter(count, 1)
    queries = {name: case.direction[f"{name}.weight"].reshape(1, -1) for name in modules}
    collector = InMemoryCollector(
        model=case.model,
        cfg=IndexConfig(run_path="unused"),
        processor=GradientProcessor(),
        target_modules=set(modules),
        data=Table.from_dict({"row": list(range(count))}),
        scorer=Scorer(queries, modules, writer, torch.device("cpu"), torch.float32),
    )
    first = 0
    for batch in case.batches:
        rows = list(range(first, first + len(batch.ids)))
        with collector:
            losses = case.losses(case.model, batch)
            losses.sum().backward()
        collector.process_batch(rows, losses=losses)
        case.model.zero_grad(set_to_none=True)
        first += len(rows)
    return writer.scores


def pairwise(model: nn.Module, task: Task, batches: list[Batch], tokens: int) -> Tensor:
    """Return kronfluence's scores, shape [1, episodes], target gradient included."""
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("scores", model, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
        rows, queries = Rows(batches), Rows(demonstrations_of(model, tokens))
        analyzer.fit_all_factors(
            "identity", rows, per_device_batch_size=32, factor_args=FactorArguments(strategy="identity")
        )
        found = analyzer.compute_pairwise_scores(
            "pairs",
            "identity",
            queries,
            rows,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=32,
            score_args=ScoreArguments(aggregate_query_gradients=True),
        )
        scores: Tensor = (
            analyzer.load_pairwise_scores("pairs")["all_modules"] if found is None else found["all_modules"]
        )
    return scores


if __name__ == "__main__":
    main()
