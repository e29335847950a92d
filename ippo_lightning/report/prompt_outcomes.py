"""What the final test found for each prompt, as a run leaves it in its folder."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from ippo_lightning.report.display import number
from ippo_lightning.report.records import PromptOutcomes
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.run_folder import JsonObject

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST_FILE = 64 * 1024 * 1024
_MOST_SAMPLES = 100_000
"""Samples per prompt; binomial coefficients of larger numbers, which only a changed file has, take long."""
_ROUNDING = 1e-5
"""results.json contains the same fractions in single precision."""


def read_outcomes(path: Path, *, results: JsonObject | None) -> PromptOutcomes | None:
    """Read the outcomes of the prompts behind the final results.

    Args:
        path: the file; runs of earlier versions have none.
        results: the final results; None for a run that did not finish.

    Returns:
        The outcomes; None if there are none, or if they are not those of `results`.
    """
    if results is None or not path.is_file():
        return None
    found = _read(path)
    if found is None:
        _LOG.warning("%s is not what a run writes; there are no intervals over prompts", path)
        return None
    exact_match = number(results.get("exact_match"))
    # An earlier end of the run, or another evaluation, may have left the file.
    is_same = exact_match is not None and abs(sum(found.correct) / sum(found.samples) - exact_match) <= _ROUNDING
    return found if is_same else None


def _read(path: Path) -> PromptOutcomes | None:
    if path.stat().st_size > _LARGEST_FILE:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return None
    if not isinstance(content, dict) or has_wrong_checksum(content):
        return None
    samples, correct, judged, unfaithful = (
        _counts(content.get(name)) for name in ("samples", "correct", "judged", "unfaithful")
    )
    votes, k = content.get("majority_vote"), number(content.get("k"))
    if samples is None or correct is None or judged is None or unfaithful is None or not isinstance(votes, list):
        return None
    columns = (samples, correct, judged, unfaithful, votes)
    if not samples or len({len(column) for column in columns}) > 1 or k is None:
        return None
    if not all(0 < n <= _MOST_SAMPLES and n >= c >= j >= u for n, c, j, u in zip(*columns[:4], strict=True)):
        return None
    digest = content.get("prompts_sha256")
    return PromptOutcomes(
        int(k), samples, correct, judged, unfaithful, tuple(number(vote) for vote in votes),
        prompts_sha256=digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else "",
    )  # fmt: skip


def _counts(column: object) -> tuple[int, ...] | None:
    if not isinstance(column, list):
        return None
    # bool is a subclass of int
    is_good = all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in column)
    return tuple(column) if is_good else None
