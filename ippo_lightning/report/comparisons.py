"""Reads the folder of a comparison, or puts single runs side by side, and gives the methods their roles."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ippo_lightning.errors import UserError
from ippo_lightning.report.paired_prompts import have_same_test
from ippo_lightning.report.records import Comparison, Method, Origin, Run
from ippo_lightning.report.runs import origin_of, read_run, settings_text, short_text, why_unfinished
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.method_names import METHOD_NAME, is_method_name
from ippo_lightning.storage.public_command import public_command
from ippo_lightning.storage.run_folder import COMPARISON, JsonObject, seed_folder, seed_of


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
    untested: list[str] = []
    for name, entry in listed["methods"].items():
        seeds = _seeds(name, entry)
        title = short_text(entry.get("title") or name)
        runs = tuple(_run_or_empty(root, method=name, seed=seed) for seed in seeds)
        untested += [f"{title}, seed {run.seed}: {why_unfinished(run)}" for run in runs if _is_untested(run)]
        # Without a final test a run has no final numbers, and its curves still count.
        runs = tuple(replace(run, results={}) if _is_untested(run) else run for run in runs)
        methods[name] = Method(
            name=name,
            title=title,
            runs=runs,
            baseline=_baseline(name, entry, listed["methods"]),
            # `is True`, because the file may contain any value, and most of them are true.
            featured=entry.get("featured") is True,
        )
        unfinished += [f"{title}, seed {run.seed}: {why_unfinished(run)}" for run in runs if not run.finished]
    origin = origin_of(listed)
    return Comparison(
        root=root,
        methods=methods,
        unfinished=tuple(unfinished),
        without_results=tuple(untested),
        command=origin.command,
        config=settings_text(str(listed.get("config") or "")),
        versions=origin.versions,
        machine=re.sub(r"(?<!\d)1 runs at a time", "1 run at a time", origin.machine),
        jobs=_jobs(listed),
    )


def gather_runs(folders: Sequence[Path], *, root: Path) -> Comparison:
    """Put runs side by side. Runs named `<method>/seed_<n>` are grouped by method; any other run is its own method.

    Args:
        folders: of runs, finished or not.
        root: the folder of the report.

    Returns:
        A comparison. The first method is the baseline of each other one that has the same test, as in `ippo evaluate`.
        Every run counts; `without_results` names those that did not finish.

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
    # What all runs share stands once; the rest stands beside each run.
    origins = [run.origin for group in groups.values() for run in group]
    shared = origins[0] if all(one.machine == origins[0].machine for one in origins) else Origin()
    same_versions = all(one.versions == origins[0].versions for one in origins)
    return Comparison(
        root=root,
        methods=_with_first_as_baseline(methods),
        without_results=without_results,
        command=public_command(["ippo", "report", *map(str, folders)]),
        versions=origins[0].versions if same_versions else {},
        machine=shared.machine,
        side_by_side=True,
        jobs=max((jobs for folder in folders if (jobs := _jobs_of_run(folder)) is not None), default=None),
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


def _is_untested(run: Run) -> bool:
    return not run.finished and run.reached_its_end


def _with_first_as_baseline(methods: dict[str, Method]) -> dict[str, Method]:
    """Return the methods, each with the first one as its baseline if both have the same test."""
    first, *others = methods.values()
    paired = {other.name: replace(other, baseline=first.name) for other in others if have_same_test(first, other)}
    return {**methods, **paired}


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


def _jobs_of_run(folder: Path) -> int | None:
    """Return how many runs were under way at a time, for a run in the folder of a comparison; None for any other."""
    path = folder.resolve().parent.parent / COMPARISON
    if seed_of(folder.resolve()) is None or not path.is_file():
        return None
    try:
        # only the time of an iteration depends on it, so what cannot be read is no error here
        return _jobs(_read_listing(path))
    except UserError:
        return None


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
