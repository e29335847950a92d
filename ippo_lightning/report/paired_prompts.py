"""Two runs on the same test prompts: is it the same test, and how exact is the difference of their numbers?"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

from ippo_lightning.report.measures import Metric
from ippo_lightning.report.prompt_intervals import paired_interval
from ippo_lightning.report.records import Method, Run

_LOG = logging.getLogger(__name__)
_SECTION = re.compile(r"^(data|fabric):\n((?:[ \-].*\n?)*)", re.MULTILINE)
_ORDER = re.compile(r"^ +(?:devices|num_nodes): .*$", re.MULTILINE)
_SEED = re.compile(r"^seed_everything: .*$", re.MULTILINE)


def have_same_test(first: Method, second: Method) -> bool:
    """Return whether all runs of two methods were tested on the same prompts or environments.

    Their settings tell, and where runs recorded a digest of their prompts, that is the same as well: a file that both
    name may have changed between them.

    Args:
        first: one with at least one run.
        second: as well.
    """
    runs = [*first.runs, *second.runs]
    tests = {_test_of(run) for run in runs}
    digests = {digest for run in runs if (digest := _prompts_of(run))}
    return len(tests) == 1 and None not in tests and len(digests) < 2


def paired_over_prompts(first: Run, second: Run, metric: Metric) -> list[float] | None:
    """Return the 95 % interval of the second run minus the first one, over the test prompts of both.

    Args:
        first: one run.
        second: another one.
        metric: a number of the final test.

    Returns:
        [low, high]; None if the runs have no counts of the same prompts. Runs of earlier versions did not record which
        prompts they were tested on, so they have none.
    """
    mine, other = second.prompt_outcomes, first.prompt_outcomes
    if mine is None or other is None or len(mine.samples) != len(other.samples) or _test_of(first) != _test_of(second):
        return None
    for run in (first, second):
        if not _prompts_of(run):
            _tell_of_earlier_version(run.folder)
            return None
    return paired_interval(other, mine, metric) if mine.prompts_sha256 == other.prompts_sha256 else None


def _prompts_of(run: Run) -> str:
    return "" if run.prompt_outcomes is None else run.prompt_outcomes.prompts_sha256


@lru_cache(maxsize=64)  # once, and not for each number
def _tell_of_earlier_version(folder: Path) -> None:
    _LOG.warning(
        "%s does not record which prompts it was tested on, so it is not paired with another run; `ippo evaluate` "
        "measures both on the same prompts",
        folder,
    )


def _test_of(run: Run) -> tuple[str, ...] | None:
    """Return the settings that choose the test prompts and their order; None if the run did not record them."""
    # As text: a stranger's YAML may take forever to expand.
    sections = dict(_SECTION.findall(run.config))
    environment = str((run.results or {}).get("environment") or "")
    if "data" not in sections:
        return None
    data = sections["data"]
    # Without a seed of its own the data follow the seed of the run.
    seed = _SEED.findall(run.config) if re.search(r"^ +seed: null$", data, re.MULTILINE) else []
    # Each rank has prompts of its own, and their results are put one behind the other.
    return (data, environment, *_ORDER.findall(sections.get("fabric", "")), *seed)
