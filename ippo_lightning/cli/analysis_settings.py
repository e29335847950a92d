"""Settings of `ippo diagnose`, `ippo trace` and `ippo intervene`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ippo_lightning.errors import UserError, require_choice, require_range

# As in `ippo_lightning.analysis`, whose imports take seconds.
TargetName = Literal["auto", "run", "return", "reward"]
Baseline = Literal["auto", "states", "critic"]
ScoresOf = Literal["round", "start"]


@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings:
    """What `ippo diagnose` shows.

    Args:
        iteration: counted from 0 as in the names of the buffers, so that the report's iteration 1 is 0; null for the
            latest that was kept.
        records: how many with the lowest scores, and as many with the highest; null for 100 in environments and 20
            responses, and fewer of a small buffer.
        target: what scores are about: `run` for those that the run's own filter made, `return` for the return of the
            buffer, `reward` for the average reward of responses; `auto` is `run` if there are such scores, else
            `return` in environments and `reward` for responses.
        baseline: of the Monte-Carlo advantage in environments: `states` compares records of the same observation,
            `critic` subtracts the critic's value; `auto` is `states` if observations repeat.
        seed: of the random records that the lowest are compared with.
        output: folder of the page; by default `diagnosis/iteration_N` in that of the run.

    Raises:
        UserError: a number out of its range.
    """

    iteration: int | None = None
    records: int | None = None
    target: TargetName = "auto"
    baseline: Baseline = "auto"
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)
        if self.records is not None:
            require_range("records", self.records, at_least=1, integer=True)
        require_range("seed", self.seed, at_least=0, integer=True)
        require_choice("target", self.target, get_args(TargetName))
        require_choice("baseline", self.baseline, get_args(Baseline))


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What `ippo trace` shows.

    Args:
        behaviour: `OBSERVATION:ACTION` where both are numbers from a list, as in `14:2`; `record:ITERATION:ROW` for a
            kept row, as in `record:5:17`, both counted from 0; or a JSON file with `observation` and
            `action`, or with `prompt` and `response`. Null for the record whose probability rose most.
        first: the first iteration, counted from 0 (the report counts from 1); null for the first that was kept.
        last: the last iteration, counted from 0; null for the last that was kept.
        every: trace each so many-th kept iteration.
        scores: `round` sums over the optimizer steps of each iteration; `start` takes the parameters before them, which
            costs one pass. Null for `round` in environments and `start` for language models.
        neighbours: of a record in the roughness, 20 to 100.
        top: records with the highest scores that are listed and drawn.
        seed: of the permutations that the roughness is compared with.
        output: folder of the page; by default one in `trace` of the run, with the name of the behaviour.

    Raises:
        UserError: a number out of its range, or a behaviour that cannot be read.
    """

    behaviour: str | None = None
    first: int | None = None
    last: int | None = None
    every: int = 1
    scores: ScoresOf | None = None
    neighbours: int = 20
    top: int = 100
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        _check(None, self.output)
        for name in ("first", "last"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), at_least=0, integer=True)
        if self.first is not None and self.last is not None and self.last < self.first:
            raise UserError(f"last: {self.last} is before first, {self.first}; expected at least {self.first}")
        require_range("every", self.every, at_least=1, integer=True)
        require_range("neighbours", self.neighbours, at_least=20, at_most=100, integer=True)
        require_range("top", self.top, at_least=1, at_most=1000, integer=True)
        require_range("seed", self.seed, at_least=0, below=2**32, integer=True)
        if self.scores is not None:
            require_choice("scores", self.scores, get_args(ScoresOf))

    def check_run(self, run_dir: Path) -> None:
        """Check against the folder of the run what needs no model.

        Args:
            run_dir: folder of the run.

        Raises:
            UserError: the behaviour cannot be read, or a kept iteration or row does not exist.
        """
        from ippo_lightning.analysis.behaviour_words import NamedRecord, read_behaviour
        from ippo_lightning.analysis.behaviours import check_record
        from ippo_lightning.analysis.traced_rounds import chosen_iterations

        named = None if self.behaviour is None else read_behaviour(self.behaviour)
        if isinstance(named, NamedRecord):
            check_record(named, run_dir)
        chosen_iterations(run_dir, first=self.first, last=self.last, every=self.every)


@dataclass(frozen=True, kw_only=True)
class InterveneSettings:
    """What `ippo intervene` compares.

    Args:
        iteration: counted from 0 as in the names of the buffers, so that the report's iteration 1 is 0; null for all
            that were kept.
        every: of all kept iterations, take every n-th, from the first one.
        repeats: orders of minibatches in which each way is trained, at least 2; the first one is that of the run.
        draws: random sets of records that are dropped as a control, at least 2.
        episodes: of each test; of a language model the first prompts of its test split. Null for those of the run's
            own test. Each iteration has other episodes, and the same for all ways to train.
        own: train also with the weights of the run, if it dropped or weighted records.
        seed: of orders and draws.
        output: folder of the page and of the iterations that are done, from which the same command goes on; by default
            `intervention` in that of the first run, where each page has a folder of its own.

    Raises:
        UserError: a number out of its range, or `every` beside one iteration.
    """

    iteration: int | None = None
    every: int = 1
    repeats: int = 3
    draws: int = 5
    episodes: int | None = None
    own: bool = False
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        _check(self.iteration, self.output)
        for name, lowest in {"every": 1, "repeats": 2, "draws": 2, "seed": 0}.items():
            require_range(name, getattr(self, name), at_least=lowest, integer=True)
        if self.episodes is not None:
            require_range("episodes", self.episodes, at_least=2, integer=True)
        if self.iteration is not None and self.every != 1:
            raise UserError(f"every: {self.every} needs all iterations; leave it out, or iteration")


def _check(iteration: int | None, output: str | None) -> None:
    if iteration is not None:
        require_range("iteration", iteration, at_least=0, integer=True)
    if output == "":
        raise UserError("output: no value given")


SETTINGS = {"diagnose": DiagnoseSettings, "trace": TraceSettings, "intervene": InterveneSettings}
"""By command."""
