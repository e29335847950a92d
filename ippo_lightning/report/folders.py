"""The folders that runs leave on disk, read into frozen records. Nothing in them is trusted to be whole."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ippo_lightning.errors import UserError
from ippo_lightning.report.display import number
from ippo_lightning.storage.untrusted_text import cut, visible_text

_LOG = logging.getLogger(__name__)

LONGEST_TEXT = 600
"""Characters kept of a prompt or a response."""
LONGEST_LINE = 16 * 1024 * 1024
"""Characters of one JSON line; a longer one is left out and counted."""
LONGEST_SETTINGS = 50_000
"""Characters kept of a settings file."""


@dataclass(frozen=True)
class EpisodeRow:
    """One recorded episode: what was asked and answered, and what it was graded to be worth."""

    iteration: int
    prompt: str
    response: str
    label: str
    reward: float | None
    advantage: float | None
    score: float | None
    weight: float | None

    @property
    def kept(self) -> bool | None:
        """Whether the update used it; None where no weight was recorded."""
        return None if self.weight is None else self.weight > 0


@dataclass(frozen=True)
class Run:
    """One method with one seed, as far as it got.

    `results` is None for a run that did not finish. `unreadable_lines` counts lines that are no JSON object; the last
    line of a file is not counted, since a crash may have cut it off.
    """

    folder: Path
    method: str
    seed: int | None
    history: tuple[Mapping[str, Any], ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    episodes: tuple[EpisodeRow, ...] = ()
    results: Mapping[str, Any] | None = None
    config: str = ""
    unreadable_lines: int = 0

    @property
    def finished(self) -> bool:
        """Whether the final test numbers are there."""
        return self.results is not None

    def result(self, metric: str) -> float | None:
        """Return a final test number; None where it is missing or not finite."""
        return number((self.results or {}).get(metric))

    def series(self, *keys: str) -> dict[int, float]:
        """Return the first of `keys` that an iteration's record has, by iteration."""
        return _series(self.history, keys)

    def validation(self, metric: str) -> dict[int, float]:
        """Return a metric on the validation split, by iteration."""
        return _series([row for row in self.evaluations if row.get("split", "validation") == "validation"], (metric,))


@dataclass(frozen=True)
class Method:
    """The runs of one method, in the order of its seeds."""

    name: str
    title: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that count."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def episodes(self) -> tuple[EpisodeRow, ...]:
        """All recorded episodes of the runs that count."""
        return tuple(episode for run in self.finished for episode in run.episodes)


@dataclass(frozen=True)
class Comparison:
    """Several methods over the same seeds."""

    root: Path
    methods: Mapping[str, Method]
    unfinished: tuple[str, ...] = ()
    without_results: tuple[str, ...] = ()
    command: str = ""
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""


def read_run(folder: Path | str) -> Run:
    """Read one run's folder, finished or not.

    Args:
        folder: holds any of config.yaml, history.jsonl, evaluations.jsonl, episodes.jsonl, results.json.

    Returns:
        What is there; `results` is None where the run did not finish.

    Raises:
        UserError: the folder does not exist or holds none of these files.
    """
    folder = Path(folder)
    known = ("config.yaml", "history.jsonl", "evaluations.jsonl", "episodes.jsonl", "results.json")
    if not any((folder / name).is_file() for name in known):
        raise UserError(
            f"folder: '{folder}' is not the folder of a run; one with at least one of {', '.join(known)} is"
        )
    history, broken_history = _read_rows(folder / "history.jsonl")
    evaluations, broken_evaluations = _read_rows(folder / "evaluations.jsonl")
    episodes, broken_episodes = _read_rows(folder / "episodes.jsonl")
    seed = re.fullmatch(r"seed_(\d+)", folder.name)
    return Run(
        folder=folder,
        method=folder.parent.name if seed else folder.name,
        seed=int(seed[1]) if seed else None,
        history=_latest(history),
        evaluations=tuple(evaluations),
        episodes=tuple(_episode(row) for row in episodes),
        results=_read_results(folder / "results.json"),
        config=_settings(folder / "config.yaml"),
        unreadable_lines=broken_history + broken_evaluations + broken_episodes,
    )


def read_comparison(root: Path | str) -> Comparison:
    """Read a comparison's folder: comparison.json and the folders `<method>/seed_<s>` that it lists.

    Args:
        root: the folder that holds comparison.json.

    Returns:
        The methods in display order. Runs that are missing or did not finish are named in `unfinished`.

    Raises:
        UserError: comparison.json is missing, is not JSON, or lists no usable method.
    """
    root = Path(root)
    listed = _read_listing(root / "comparison.json")
    methods: dict[str, Method] = {}
    unfinished: list[str] = []
    for name, entry in listed["methods"].items():
        seeds = _seeds(name, entry)
        title = _short(entry.get("title") or name)
        runs = tuple(_run_or_empty(root / name / f"seed_{seed}", method=name, seed=seed) for seed in seeds)
        methods[name] = Method(name=name, title=title, runs=runs)
        unfinished += [f"{title}, seed {run.seed}: {_why_unfinished(run)}" for run in runs if not run.finished]
    versions = listed.get("versions")
    return Comparison(
        root=root,
        methods=methods,
        unfinished=tuple(unfinished),
        command=_short(listed.get("command"), limit=2000),
        config=visible_text(cut(str(listed.get("config") or ""), LONGEST_SETTINGS), multiline=True),
        versions={_short(k): _short(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        machine=_short(listed.get("machine"), limit=500),
    )


def gather_runs(folders: Sequence[Path], *, root: Path) -> Comparison:
    """Put runs side by side; those named `<method>/seed_<n>` are grouped by method, others stand for themselves.

    Args:
        folders: of runs, finished or not.
        root: where the page will lie.

    Returns:
        Every run counts; those that did not finish are named in `without_results`.

    Raises:
        UserError: a folder holds no run, or two runs cannot be told apart.
    """
    groups: dict[str, list[Run]] = {}
    for folder in folders:
        run = read_run(folder)
        group = groups.setdefault(run.method, [])
        if any(run.seed == other.seed for other in group):
            raise UserError(f"runs: {folder} and {group[0].folder} have the same name; give runs different names")
        group.append(run)
    unfinished = tuple(
        f"{run.method}: {_why_unfinished(run)}" for group in groups.values() for run in group if not run.finished
    )
    methods = {
        name: Method(name, _short(name), tuple(replace(run, results=run.results or {}) for run in group))
        for name, group in groups.items()
    }
    command = "ippo report " + " ".join(str(folder) for folder in folders)
    return Comparison(root=root, methods=methods, without_results=unfinished, command=_short(command, limit=2000))


def _read_listing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"root: '{path.parent}' has no comparison.json; the folder that `ippo compare` wrote is right")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"comparison.json: '{path}' is not JSON ({type(error).__name__}); run `ippo compare` again"
        ) from None
    methods = listed.get("methods") if isinstance(listed, dict) else None
    if not isinstance(methods, dict) or not methods:
        raise UserError(f"comparison.json: 'methods' of '{path}' is empty; an object with at least one method is right")
    return {**listed, "methods": methods}


def _seeds(name: str, entry: Any) -> list[int]:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise UserError(f"comparison.json: method {name!r} is no folder name; letters, digits and _ . + - are right")
    seeds = entry.get("seeds") if isinstance(entry, dict) else None
    if not isinstance(seeds, list) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise UserError(f"comparison.json: seeds of {name!r} are {seeds!r}; a list of integers is right")
    return seeds


def _run_or_empty(folder: Path, *, method: str, seed: int) -> Run:
    try:
        return read_run(folder)
    except UserError:
        return Run(folder=folder, method=method, seed=seed)


def _why_unfinished(run: Run) -> str:
    if run.history:
        return f"stopped after iteration {run.history[-1]['iteration']}, no final results"
    return "no final results" if run.config or run.evaluations else "nothing recorded"


def _read_results(path: Path) -> Mapping[str, Any] | None:
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        _LOG.warning("%s is not readable; the run counts as unfinished", path)
        return None
    return results if isinstance(results, dict) else None


def _settings(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as handle:
        return visible_text(cut(handle.read(2 * LONGEST_SETTINGS), LONGEST_SETTINGS), multiline=True)


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of a JSON-lines file, and how many lines before the last are none."""
    if not path.is_file():
        return [], 0
    rows: list[dict[str, Any]] = []
    unreadable = 0
    last_is_broken = False
    for line in _lines(path):
        row = _parsed(line)
        last_is_broken = row is None
        if row is None:
            unreadable += 1
        else:
            rows.append(row)
    unreadable -= last_is_broken
    if unreadable:
        _LOG.warning("%s: %d unreadable lines left out", path, unreadable)
    return rows, unreadable


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines that are not blank; of one that is too long only a beginning, which is no JSON."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as handle:
        while line := handle.readline(LONGEST_LINE):
            tail = line
            while not tail.endswith("\n") and (tail := handle.readline(LONGEST_LINE)):
                line = line[:1]
            if line.strip():
                yield line


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    usable = isinstance(row, dict) and isinstance(row.get("iteration"), int) and not isinstance(row["iteration"], bool)
    return row if usable else None


def _latest(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Order by iteration; a resumed run repeats iterations, and what it did last counts."""
    by_iteration = {row["iteration"]: row for row in rows}
    return tuple(by_iteration[iteration] for iteration in sorted(by_iteration))


def _series(rows: Any, keys: tuple[str, ...]) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in rows:
        value = next((value for key in keys if (value := number(row.get(key))) is not None), None)
        if value is not None:
            found[row["iteration"]] = value
    return dict(sorted(found.items()))


def _episode(row: Mapping[str, Any]) -> EpisodeRow:
    return EpisodeRow(
        iteration=row["iteration"],
        prompt=cut(_text(row.get("prompt")), LONGEST_TEXT),
        response=cut(_text(row.get("response")), LONGEST_TEXT),
        label=_label(_text(row.get("label"))[:100]),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        score=number(row.get("score")),
        weight=number(row.get("weight")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@lru_cache(maxsize=1024)
def _label(text: str) -> str:
    return _short(text, limit=40)


def _short(value: Any, *, limit: int = 60) -> str:
    """Return a name or a one-line remark, safe to print."""
    return visible_text(cut(str(value or ""), limit)).replace("\n", " ")
