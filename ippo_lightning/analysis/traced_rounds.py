"""A behaviour over the kept iterations of a run: how probable it was, and which records made it so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ippo_lightning.analysis.behaviour_choice import choose_behaviour
from ippo_lightning.analysis.behaviour_words import Named
from ippo_lightning.analysis.behaviours import Behaviour, RecordLogProb, find_behaviour, log_prob
from ippo_lightning.analysis.phases import Phases, find_phases
from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.analysis.roughness import Roughness, measured_roughness
from ippo_lightning.analysis.rounds import kept_rounds, read_round
from ippo_lightning.analysis.row_passes import embeddings_of
from ippo_lightning.errors import UserError
from ippo_lightning.policies.contexts import evaluating
from ippo_lightning.records import ControlEpisodes, Episodes, UpdatePlan
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.records.pass_size import PassSize
from ippo_lightning.run.checkpoints import load_parameters
from ippo_lightning.selection import RoundScores, ScoringSettings
from ippo_lightning.selection.grouped_gradients import take_gradients
from ippo_lightning.selection.module_interface import ModuleInterface
from ippo_lightning.selection.scorer import Scorer

ScoresOf = Literal["round", "start"]


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """What is traced, checked by whoever makes it."""

    iterations: tuple[int, ...]
    """The kept ones that are traced, in their order; at least one."""
    scores: ScoresOf
    neighbours: int
    top: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TracedRound:
    """One kept iteration."""

    iteration: int
    log_prob: float
    """Of the behaviour at the beginning, nats."""
    scores: Tensor
    """[rows] float64 on the CPU, those of dropped rows 0."""
    roughness: Roughness | None
    """Of the positive records; None of too few."""
    top: Tensor
    """Positions of the records with the highest scores above 0, the highest first."""
    records: Episodes
    """The rows at `top`, on the CPU."""
    positive: Tensor
    """Positions of all records with a score above 0."""
    places: Tensor
    """[positive, 2] the embeddings of these on the first two principal axes of the last traced iteration."""
    seconds: float
    """Of the scores."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A behaviour over the traced iterations."""

    behaviour: Behaviour
    options: TraceOptions
    rounds: tuple[TracedRound, ...]
    last_log_prob: float
    """Of the behaviour after the last traced update, nats."""
    phases: Phases

    @property
    def values(self) -> list[float]:
        """What the curve shows: at the beginning of each traced iteration, and after the last one."""
        found = [one.log_prob for one in self.rounds] + [self.last_log_prob]
        return [self.behaviour.value(one) for one in found]

    @property
    def is_control(self) -> bool:
        """Whether records are transitions."""
        return isinstance(self.behaviour.record, ControlEpisodes)


def chosen_iterations(folder: Path, *, first: int | None, last: int | None, every: int) -> tuple[int, ...]:
    """Return the kept iterations between two bounds, each `every`-th of them.

    Args:
        folder: of the run.
        first: lowest iteration; None for the first that was kept.
        last: highest iteration; None for the last that was kept.
        every: 1 for all of them.

    Raises:
        UserError: the run kept no iterations, or none between the bounds.
    """
    kept = kept_rounds(folder)
    low, high = kept[0] if first is None else first, kept[-1] if last is None else last
    found = tuple(one for one in kept if low <= one <= high)[::every]
    if not found:
        raise UserError(f"first: no iteration from {low} to {high} was kept; the run kept {kept[0]} to {kept[-1]}")
    return found


def trace_behaviour(
    rounds: RepeatedRounds,
    folder: Path,
    *,
    named: Named | None,
    options: TraceOptions,
    say: Callable[[str], None] = lambda _: None,
) -> Trace:
    """Score the records of each traced iteration for one behaviour.

    Args:
        rounds: of the run.
        folder: of the run.
        named: the behaviour as the user named it; None for the one that rose most.
        options: what is traced.
        say: called with lines about the progress.

    Raises:
        UserError: the behaviour does not fit the run, or a kept iteration cannot be read.
    """
    first, last = (read_round(folder, options.iterations[end]) for end in (0, -1))
    if named is None:
        behaviour = choose_behaviour(rounds, first, last)
    else:
        behaviour = find_behaviour(named, module=rounds.module, folder=folder, like=last.episodes)
    target = RecordLogProb(record=behaviour.record)
    rounds.train(last)
    final = {name: value.detach().cpu().clone() for name, value in rounds.module.trained_parameters().items()}
    last_log_prob = _log_prob(rounds, behaviour)
    axes = _principal_axes(embeddings_of(rounds.module, last.on(rounds.loop.fabric.device).episodes))
    traced: list[TracedRound] = []
    for iteration in options.iterations:
        round_ = read_round(folder, iteration)
        traced.append(_traced(rounds, round_, behaviour, target, final=final, axes=axes, options=options))
        if iteration == options.iterations[0]:
            say(_estimate(traced[0], len(options.iterations)))
    values = [behaviour.value(one) for one in [*(one.log_prob for one in traced), last_log_prob]]
    relative = [None if one.roughness is None else one.roughness.relative for one in traced]
    return Trace(
        behaviour=behaviour,
        options=options,
        rounds=tuple(traced),
        last_log_prob=last_log_prob,
        phases=find_phases(values, relative),
    )


def _traced(
    rounds: RepeatedRounds,
    round_: KeptRound,
    behaviour: Behaviour,
    target: RecordLogProb,
    *,
    final: dict[str, Tensor],
    axes: tuple[Tensor, Tensor],
    options: TraceOptions,
) -> TracedRound:
    on_device = rounds.begin(round_)
    at_start = _log_prob(rounds, behaviour)
    began = time.perf_counter()
    scores = _scores(rounds, on_device, target, how=options.scores)
    seconds = time.perf_counter() - began
    positive = (scores > 0).nonzero().flatten()
    top = positive[scores[positive].argsort(descending=True, stable=True)][: options.top]
    # The final network tells which records are alike, the same for all iterations.
    load_parameters(rounds.module, final, source=Path("the end of the run"))
    embeddings = torch.zeros(0, 1)
    places = torch.zeros(0, 2)
    if len(positive):
        embeddings = embeddings_of(rounds.module, on_device.episodes.select(positive.to(on_device.episodes.device)))
        places = (embeddings.double() - axes[0]) @ axes[1]
    return TracedRound(
        iteration=round_.iteration,
        log_prob=at_start,
        scores=scores,
        roughness=measured_roughness(
            scores[positive], embeddings, neighbours=options.neighbours, seed=options.seed + round_.iteration
        ),
        top=top,
        records=round_.episodes.select(top),
        positive=positive,
        places=places,
        seconds=seconds,
    )


def _scores(rounds: RepeatedRounds, round_: KeptRound, target: RecordLogProb, *, how: ScoresOf) -> Tensor:
    """Return the scores of all rows, summed over the steps of the update or at its beginning."""
    plan = round_.plan()
    if not round_.trains_policy:  # the critic learned alone
        return torch.zeros(len(plan.weights), dtype=torch.float64)
    if how == "round":
        scores = RoundScores(rounds.module, target=target, plan=plan)
        rounds.update(round_, scores.plan, stages=scores)
        return scores.scores
    with rounds.loop.fabric.autocast():
        gradients = take_gradients(
            rounds.module,
            target.loss(rounds.module, UpdatePlan(episodes=round_.episodes)),
            num_groups=1,
            size=PassSize("auto", field="target.max_tokens"),
        )
        scorer = Scorer(ScoringSettings(), interface=ModuleInterface(), skips_nonfinite=True)
        found = scorer.score(rounds.module, round_.episodes, gradients, iteration=round_.iteration)
    # A row that the run dropped changed nothing.
    weighted = found.scores.detach().double() * plan.weights.double()
    return torch.where(found.broken, 0.0, weighted).cpu()


def _log_prob(rounds: RepeatedRounds, behaviour: Behaviour) -> float:
    with torch.no_grad(), evaluating(rounds.module):
        return float(log_prob(rounds.module, behaviour.record.to(rounds.loop.fabric.device)))


def _principal_axes(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of embeddings, and their first two principal axes as columns [features, 2]."""
    points = embeddings.double()
    mean = points.mean(dim=0)
    axes = torch.linalg.svd(points - mean, full_matrices=False).Vh[:2].T
    return mean, torch.nn.functional.pad(axes, (0, 2 - axes.shape[1]))


def _estimate(first: TracedRound, count: int) -> str:
    left = first.seconds * (count - 1)
    rest = f"about {left / 60:.0f} minutes" if left >= 120 else f"about {left:.0f} s"
    return f"Scores of one iteration take {first.seconds:.1f} s; {count - 1} more take {rest}."


def shown_rounds(trace: Trace, count: int) -> Sequence[TracedRound]:
    """Return iterations with positive records across the phases: their first, middle ones, and the last.

    Args:
        trace: of a behaviour.
        count: at most so many.
    """
    usable: list[Any] = [one for one in trace.rounds if len(one.top)]
    if len(usable) <= count:
        return usable
    names = dict(zip((one.iteration for one in trace.rounds), trace.phases.of_iteration, strict=False))
    groups = [[one for one in usable if names.get(one.iteration) == phase] for phase in dict.fromkeys(names.values())]
    # The middle of each phase stands for it.
    picked: list[Any] = [group[len(group) // 2] for group in groups if group]
    spread = [usable[round(index * (len(usable) - 1) / (count - 1))] for index in range(count)]
    for one in spread:
        if len(picked) < count and all(one is not other for other in picked):
            picked.append(one)
    return sorted(picked[:count], key=lambda one: int(one.iteration))
