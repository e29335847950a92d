"""Reads the folder of one run. The report trusts nothing in it: files may be missing, cut off or hostile."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ippo_lightning.errors import UserError
from ippo_lightning.report.display import counted, number
from ippo_lightning.report.json_lines import read_rows
from ippo_lightning.report.prompt_outcomes import read_outcomes
from ippo_lightning.report.records import EpisodeRow, Origin, Run
from ippo_lightning.storage.checkpoint_files import is_finished, newest_first
from ippo_lightning.storage.checksums import has_wrong_checksum
from ippo_lightning.storage.public_command import public_command_line
from ippo_lightning.storage.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EPISODES,
    EVALUATIONS,
    HISTORY,
    ORIGIN,
    READABLE,
    RESULTS,
    TEST_PROMPTS,
    JsonObject,
    seed_of,
)
from ippo_lightning.storage.untrusted_text import cut, visible_text

_LOG = logging.getLogger(__name__)

LONGEST_TEXT = 600
"""Characters kept of a prompt or a response."""
LONGEST_SETTINGS = 50_000
"""Characters kept of a settings file."""
_LONGEST_COMMAND = 2000
_LARGEST_ORIGIN = 64 * 1024
_MOST_VERSIONS = 20
_MOST_CHANGES = 32
"""Changes read from one episode; a plan has one per callback."""


def read_run(folder: Path | str) -> Run:
    """Read one run's folder, finished or not.

    Args:
        folder: contains at least one of config.yaml, history.jsonl, evaluations.jsonl, episodes.jsonl, results.json.

    Returns:
        What the folder contains; `results` is None if the run did not finish.

    Raises:
        UserError: the folder does not exist or contains none of these files.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in READABLE):
        raise UserError(
            f"folder: '{folder}' is not the folder of a run; expected one that contains at least one of "
            f"{', '.join(READABLE)}"
        )
    history, broken_history = read_rows(folder / HISTORY)
    evaluations, broken_evaluations = read_rows(folder / EVALUATIONS)
    episodes, broken_episodes = read_rows(folder / EPISODES)
    seed = seed_of(folder)
    rows = _latest(history)
    results = _results_of_this_end(folder / RESULTS, rows)
    return Run(
        folder=folder,
        # A run of `ippo compare` lies in `<method>/seed_<n>`; any other folder is named by its user.
        method=folder.name if seed is None else folder.parent.name,
        seed=seed,
        history=rows,
        evaluations=tuple(evaluations),
        episodes=tuple(_episode(row) for row in episodes),
        results=results,
        prompt_outcomes=read_outcomes(folder / TEST_PROMPTS, results=results),
        config=_read_settings(folder / CONFIG),
        unreadable_lines=broken_history + broken_evaluations + broken_episodes,
        origin=_read_origin(folder / ORIGIN),
        newest_checkpoint=next((path.name for path in newest_first(folder / CHECKPOINTS) if is_finished(path)), ""),
    )


def why_unfinished(run: Run) -> str:
    """Return how far a run without final results got, in words."""
    # as the progress of a run counts them, from 1
    done = counted(run.history[-1]["iteration"] + 1, "iteration") if run.history else ""
    if run.reached_its_end:
        return f"ended after {done} without a final test"
    if run.history:
        saved = f" (newest checkpoint: {short_text(run.newest_checkpoint)})" if run.newest_checkpoint else ""
        return f"stopped after {done}, no final results{saved}"
    return "no final results" if run.config or run.evaluations else "nothing recorded"


def short_text(value: object, *, limit: int = 60) -> str:
    """Return a name or remark on one line, cut to `limit` characters, with hidden characters made visible."""
    # Cut first: a hostile text of any length then costs no more than `limit` characters.
    return visible_text(cut(str(value or ""), limit)).replace("\n", " ")


def settings_text(text: str) -> str:
    """Return a settings file's text, cut to `LONGEST_SETTINGS` characters, with hidden characters made visible."""
    return visible_text(cut(text, LONGEST_SETTINGS), multiline=True)


def origin_of(content: object) -> Origin:
    """Return command, versions and machine of a JSON object, each cut and on one line.

    Args:
        content: anything; what it lacks stays empty.
    """
    given = content if isinstance(content, dict) else {}
    versions = given.get("versions")
    listed = list(versions.items())[:_MOST_VERSIONS] if isinstance(versions, dict) else []
    return Origin(
        # of an earlier version, or of a run that began elsewhere
        command=short_text(
            public_command_line(str(given.get("command") or "")[:_LONGEST_COMMAND]), limit=_LONGEST_COMMAND
        ),
        versions={short_text(name): short_text(version) for name, version in listed},
        machine=short_text(given.get("machine"), limit=500),
    )


def _read_origin(path: Path) -> Origin:
    # Runs of earlier versions have no such file, and a report is worth writing without it.
    if not path.is_file() or path.stat().st_size > _LARGEST_ORIGIN:
        return Origin()
    try:
        return origin_of(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (ValueError, RecursionError):
        return Origin()


def _results_of_this_end(path: Path, history: Sequence[JsonObject]) -> JsonObject | None:
    """Return the final results; None if the run went on after them."""
    results = _read_results(path)
    iterations = number((results or {}).get("iterations"))
    if iterations is not None and history and history[-1]["iteration"] >= iterations:
        _LOG.warning("%s is of an earlier end of the run; the run counts as unfinished", path)
        return None
    return results


def _read_results(path: Path) -> JsonObject | None:
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        # No error: what the run recorded before is still worth a report.
        _LOG.warning("%s is not readable; the run counts as unfinished", path)
        return None
    if isinstance(results, dict) and has_wrong_checksum(results):
        _LOG.warning("%s is not what the run wrote (its checksum differs); the run counts as unfinished", path)
        return None
    return results if isinstance(results, dict) else None


def _read_settings(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as handle:
        # More than the limit, so that the text states that it is cut; a bound, because the file may be of any size.
        return settings_text(handle.read(2 * LONGEST_SETTINGS))


def _latest(rows: list[JsonObject]) -> tuple[JsonObject, ...]:
    """Order rows by iteration. A resumed run may repeat iterations; the last row of each counts."""
    by_iteration = {row["iteration"]: row for row in rows}
    return tuple(by_iteration[iteration] for iteration in sorted(by_iteration))


def _episode(row: JsonObject) -> EpisodeRow:
    prompt = _text(row.get("prompt"))
    return EpisodeRow(
        iteration=row["iteration"],
        prompt=cut(prompt, LONGEST_TEXT),
        prompt_key=hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest() if prompt else "",
        response=cut(_text(row.get("response")), LONGEST_TEXT),
        label=_label(row),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        score=number(row.get("score")),
        weight=number(row.get("weight")),
        changes=_changes(row.get("reasons"), row.get("factors")),
    )


def _label(row: JsonObject) -> str:
    """Return the label of an episode; a grader without labels leaves only whether the answer is right."""
    label = _text(row.get("label"))
    if label:
        # 100 characters are more than `_short_label` keeps; more would fill its cache with whole responses.
        return _short_label(label[:100])
    correct = row.get("correct")
    return {True: "right", False: "wrong"}[correct] if isinstance(correct, bool) else ""


def _changes(reasons: object, factors: object) -> tuple[tuple[str, float], ...] | None:
    if not isinstance(reasons, list) or not isinstance(factors, list) or len(reasons) != len(factors):
        return None
    # A hostile file may list millions of changes in one row.
    pairs = zip(reasons[:_MOST_CHANGES], factors[:_MOST_CHANGES], strict=True)
    return tuple(
        (_short_label(_text(reason)[:100]), value) for reason, factor in pairs if (value := number(factor)) is not None
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


@lru_cache(maxsize=1024)
def _short_label(text: str) -> str:
    # The same few labels stand in thousands of rows.
    return short_text(text, limit=40)
