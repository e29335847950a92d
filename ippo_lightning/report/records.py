"""What a report is made from: episodes, runs, methods and a comparison, as frozen records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ippo_lightning.report.display import number
from ippo_lightning.storage.run_folder import JsonObject


@dataclass(frozen=True)
class EpisodeRow:
    """One recorded episode. A number is None if the run did not record it or if it is not finite."""

    iteration: int
    prompt: str
    response: str
    label: str
    """The grader's label; `right` or `wrong` if the grader gives no labels; empty without a grader."""
    reward: float | None
    advantage: float | None
    score: float | None
    """Influence score; None if nothing scored the episode."""
    weight: float | None
    """Weight of the episode's policy loss; zero means that the update did not use it."""
    changes: tuple[tuple[str, float], ...] | None = None
    """Who changed the weight, and by which factor, oldest first; None if the run did not record it."""
    prompt_key: str = ""
    """Tells prompts apart that begin alike: `prompt` is cut. Empty without a prompt."""

    @property
    def kept(self) -> bool | None:
        """Whether the update used the episode; None if no weight was recorded."""
        return None if self.weight is None else self.weight > 0


@dataclass(frozen=True)
class PromptOutcomes:
    """What the final test found for each prompt. All columns have one entry per prompt."""

    k: int
    """Of pass@k."""
    samples: tuple[int, ...]
    correct: tuple[int, ...]
    """Right responses."""
    judged: tuple[int, ...]
    """Right responses whose reasoning the grader judged."""
    unfaithful: tuple[int, ...]
    """Right responses whose reasoning is wrong, is missing or belongs to another problem."""
    majority_vote: tuple[float | None, ...]
    """Chance that the most frequent answer is right; None for a prompt without a reference."""
    prompts_sha256: str = ""
    """Of the prompts in their order; empty for a run of an earlier version."""


@dataclass(frozen=True)
class Origin:
    """With what a run began. Each part is empty if the run did not record it."""

    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True)
class Run:
    """One method with one seed, as far as it got."""

    folder: Path
    method: str
    seed: int | None
    history: tuple[JsonObject, ...] = ()
    """One row per iteration, in order."""
    evaluations: tuple[JsonObject, ...] = ()
    episodes: tuple[EpisodeRow, ...] = ()
    results: JsonObject | None = None
    """Final test numbers; None for a run that did not finish."""
    config: str = ""
    unreadable_lines: int = 0
    """Lines that are not a JSON object. The last line of a file does not count: a crash may have cut it off."""
    prompt_outcomes: PromptOutcomes | None = None
    """Behind the final test numbers; None for a run of an earlier version."""
    newest_checkpoint: str = ""
    """Name of the newest complete checkpoint; empty without one."""
    origin: Origin = field(default_factory=Origin)

    @property
    def finished(self) -> bool:
        """Whether the final test numbers exist."""
        return self.results is not None

    @property
    def reached_its_end(self) -> bool:
        """Whether the last iteration of its settings is done; a run without a final test ends so."""
        last = self.history[-1] if self.history else {}
        total = number(last.get("max_iterations"))
        return total is not None and last["iteration"] + 1 >= total

    @property
    def is_control(self) -> bool:
        """Whether the policy acts in environments: the run has returns, and no prompts."""
        return bool(self.series("rollout/finished_episodes")) or self.result("episode_return") is not None

    def result(self, metric: str) -> float | None:
        """Return a final test number; None if it is missing or not finite."""
        return number((self.results or {}).get(metric))

    def series(self, *keys: str) -> dict[int, float]:
        """Return, by iteration, the first of `keys` that the iteration's row contains."""
        return _series(self.history, keys)

    def validation(self, metric: str) -> dict[int, float]:
        """Return a metric on the validation split, by iteration."""
        return _series([row for row in self.evaluations if row.get("split", "validation") == "validation"], (metric,))


@dataclass(frozen=True)
class Method:
    """The runs of one method, in the order of its seeds: one column of a comparison."""

    name: str
    title: str
    runs: tuple[Run, ...]
    baseline: str | None = None
    """Name of the method that this one is compared with; None for no comparison."""
    featured: bool = False
    """Whether the headline is about this method."""

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that count."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def episodes(self) -> tuple[EpisodeRow, ...]:
        """All recorded episodes of the runs that count."""
        return tuple(episode for run in self.finished for episode in run.episodes)

    @property
    def is_untrained(self) -> bool:
        """Whether the method only evaluates its start: results without a single iteration."""
        # A method that has not started yet has no history either, so at least one run must have results.
        return bool(self.finished) and not any(run.history for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Several methods over the same seeds."""

    root: Path
    """The folder that the report is written into."""
    methods: Mapping[str, Method]
    """By name, in display order."""
    unfinished: tuple[str, ...] = ()
    """Runs that no number and no figure includes, each with the reason."""
    without_results: tuple[str, ...] = ()
    """Runs without final numbers that the figures still include, each with the reason."""
    command: str = ""
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    side_by_side: bool = False
    """Whether the user has chosen the runs, which may have little in common, and not `ippo compare`."""
    jobs: int | None = None
    """Runs that were under way at the same time on the same cores; None if unknown."""

    @property
    def shared_cores(self) -> bool:
        """Whether several runs shared the cores, so that their seconds measure more than their own work."""
        return self.jobs is not None and self.jobs > 1

    @property
    def is_control(self) -> bool:
        """Whether all runs are in environments; a report of texts and environments has the words of texts."""
        runs = [run for method in self.methods.values() for run in method.runs]
        return bool(runs) and all(run.is_control for run in runs)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the methods that others are compared with, in display order."""
        named = {method.baseline for method in self.methods.values()}
        return tuple(name for name in self.methods if name in named)


def _series(rows: Iterable[JsonObject], keys: tuple[str, ...]) -> dict[int, float]:
    # Evaluations of a resumed run may repeat an iteration: the last row counts.
    found: dict[int, float] = {}
    for row in rows:
        # Logs are written with null for NaN; such an iteration has no point instead of a wrong one.
        value = next((value for key in keys if (value := number(row.get(key))) is not None), None)
        if value is not None:
            found[row["iteration"]] = value
    return dict(sorted(found.items()))
