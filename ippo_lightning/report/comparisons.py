"""Reads the folder of a comparison, or puts single runs side by side, and gives the methods their roles."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ippo_lightning.errors import UserError
from ippo_lightning.report.records import Comparison, Method, Run
from ippo_lightning.report.runs import read_run, settings_text, short_text, why_unfinished
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.method_names import METHOD_NAME, is_method_name
from ippo_lightning.storage.run_folder import COMPARISON, JsonObject, seed_folder


def read_comparison(root: Path | str) -> Comparison:
    """Read a comparison's folder: comparison.json and the folders `<method>/seed_<n>` that it lists.

    Args:
        root: the folder that contains comparison.json.

    Returns:
        The methods in display order. `unfinished` names the runs that are missing or did not finish.

    Raises:
        UserError: comparison.json is missing, is not JSON, or lists no usable method.
    """
    root = Path(root)
    listed = _read_listing(root / COMPARISON)
    # JSON keeps the order of keys: it is the display order.
    methods: dict[str, Method] = {}
    unfinished: list[str] = []
    for name, entry in listed["methods"].items():
        seeds = _seeds(name, entry)
        title = short_text(entry.get("title") or name)
        runs = tuple(_run_or_empty(root, method=name, seed=seed) for seed in seeds)
        methods[name] = Method(
            name=name,
            title=title,
            runs=runs,
            baseline=_baseline(name, entry, listed["methods"]),
            # `is True`, because the file may contain any value, and most of them are true.
            featured=entry.get("featured") is True,
        )
        unfinished += [f"{title}, seed {run.seed}: {why_unfinished(run)}" for run in runs if not run.finished]
    versions = listed.get("versions")
    return Comparison(
        root=root,
        methods=methods,
        unfinished=tuple(unfinished),
        command=short_text(listed.get("command"), limit=2000),
        config=settings_text(str(listed.get("config") or "")),
        versions={short_text(k): short_text(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        machine=short_text(listed.get("machine"), limit=500),
        jobs=_jobs(listed),
    )


def gather_runs(folders: Sequence[Path], *, root: Path) -> Comparison:
    """Put runs side by side. Runs named `<method>/seed_<n>` are grouped by method; any other run is its own method.

    Args:
        folders: of runs, finished or not.
        root: the folder of the report.

    Returns:
        A comparison without baseline. Every run counts; `without_results` names those that did not finish.

    Raises:
        UserError: a folder contains no run, or two runs have the same name.
    """
    groups: dict[str, list[Run]] = {}
    for folder in folders:
        run = read_run(folder)
        group = groups.setdefault(run.method, [])
        # A second run of the same name would count as another seed of the method.
        if any(run.seed == other.seed for other in group):
            raise UserError(f"runs: {folder} and {group[0].folder} have the same name; give runs different names")
        group.append(run)
    without_results = tuple(
        f"{run.method}: {why_unfinished(run)}" for group in groups.values() for run in group if not run.finished
    )
    # A user who names a run wants to see it, so an empty result makes it count as finished.
    methods = {
        name: Method(name, short_text(name), tuple(replace(run, results=run.results or {}) for run in group))
        for name, group in groups.items()
    }
    command = "ippo report " + " ".join(str(folder) for folder in folders)
    return Comparison(
        root=root, methods=methods, without_results=without_results, command=short_text(command, limit=2000)
    )


def with_roles(comparison: Comparison, *, baseline: str | None = None, featured: str | None = None) -> Comparison:
    """Return the comparison with other roles.

    Args:
        comparison: from `read_comparison` or `gather_runs`.
        baseline: name of the method that all others are compared with; None leaves the baselines as they are.
        featured: name of the method that the headline is about; None leaves it as it is.

    Raises:
        UserError: a name that is no method of the comparison.
    """
    for role, name in (("baseline", baseline), ("featured", featured)):
        if name is not None and name not in comparison.methods:
            raise UserError(f"{role}: {name!r} is no method of this report; expected one of {list(comparison.methods)}")
    methods = dict(comparison.methods)
    if baseline is not None:
        methods = {n: replace(m, baseline=None if n == baseline else baseline) for n, m in methods.items()}
    if featured is not None:
        methods = {n: replace(m, featured=n == featured) for n, m in methods.items()}
    return replace(comparison, methods=methods)


def _read_listing(path: Path) -> JsonObject:
    if not path.is_file():
        raise UserError(f"root: '{path.parent}' has no {COMPARISON}; expected the folder that `ippo compare` wrote")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{COMPARISON}: '{path}' is not JSON ({type(error).__name__}); run `ippo compare` again"
        ) from None
    if isinstance(listed, dict) and has_wrong_checksum(listed):
        raise UserError(f"{COMPARISON}: '{path}' was changed (its checksum differs); run `ippo compare` again")
    methods = listed.get("methods") if isinstance(listed, dict) else None
    if not isinstance(methods, dict) or not methods:
        raise UserError(f"{COMPARISON}: 'methods' of '{path}' is empty; expected an object with at least one method")
    return {**listed, "methods": methods}


def _jobs(listed: JsonObject) -> int | None:
    """Return how many runs were under way at a time. Comparisons of earlier versions name it in `machine` only."""
    jobs = listed.get("jobs")
    if isinstance(jobs, int) and not isinstance(jobs, bool):
        return jobs
    found = re.search(r"(\d{1,6}) runs at a time", str(listed.get("machine") or "")[:500])
    return int(found[1]) if found else None


def _seeds(name: str, entry: object) -> list[int]:
    # The name becomes part of a path: without this check, "../.." would read folders outside the comparison.
    if not is_method_name(name):
        raise UserError(f"{COMPARISON}: method {name!r} is no folder name; expected {METHOD_NAME}")
    seeds = entry.get("seeds") if isinstance(entry, dict) else None
    # bool is a subclass of int: `true` would be read as seed 1.
    if not isinstance(seeds, list) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise UserError(f"{COMPARISON}: seeds of {name!r} are {seeds!r}; expected a list of integers")
    return seeds


def _baseline(name: str, entry: JsonObject, methods: JsonObject) -> str | None:
    """Return the baseline of a listed method. Comparisons from before baselines were listed have none."""
    baseline = entry.get("baseline")
    if baseline is None or (isinstance(baseline, str) and baseline in methods and baseline != name):
        return baseline
    # Refused and not ignored: without its baseline, a method would lose its row of differences silently.
    raise UserError(f"{COMPARISON}: baseline of {name!r} is {baseline!r}; expected the name of another method or null")


def _run_or_empty(root: Path, *, method: str, seed: int) -> Run:
    folder = seed_folder(root, method=method, seed=seed)
    try:
        return read_run(folder)
    except UserError:  # not started yet: the report names it among the unfinished runs
        return Run(folder=folder, method=method, seed=seed)
