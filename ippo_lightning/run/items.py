"""The items of an evaluation: one response each, with its grade or reward, as rows of a parquet file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow
from pyarrow import parquet

from ippo_lightning.storage.atomic import write_whole
from ippo_lightning.storage.untrusted_text import cut

LONGEST_TEXT = 100_000
"""Characters kept of a prompt or a response."""
LONGEST_ANSWER = 2_000
"""Characters kept of an answer or a label."""


class Item(TypedDict):
    """One response to one prompt."""

    prompt_index: int
    """Place of the prompt in its split, counted from 0."""
    sample: int
    """Place of the response among those to the prompt, counted from 0."""
    prompt: str
    response: str
    correct: bool | None
    """Whether the answer is right; None without a grader, as the next four."""
    label: str | None
    """What the grader calls the response; None also if it gives no labels."""
    faithful: bool | None
    """Whether answer and reasoning are both right; None if the label does not describe reasoning."""
    answer: str | None
    """The answer in canonical form; None also if the response contains none."""
    reference: str | None
    """The right answer in canonical form; None also if the task has none."""
    reward: float | None
    """Of the reward; None if it is not measured, as where it is the grade."""
    reward_parts: dict[str, float]
    """Of a reward with named parts, the number of each; NaN where the reward did not return it."""
    response_tokens: int
    """EOS included."""
    truncated: bool
    """Whether the length limit came before the end."""


# With a schema, a column that is None in all rows has the same type in each file.
_SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.int64()) for name in ("prompt_index", "sample")),
        *((name, pyarrow.string()) for name in ("prompt", "response")),
        ("correct", pyarrow.bool_()),
        ("label", pyarrow.string()),
        ("faithful", pyarrow.bool_()),
        *((name, pyarrow.string()) for name in ("answer", "reference")),
        ("reward", pyarrow.float64()),
        ("reward_parts", pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        ("response_tokens", pyarrow.int64()),
        ("truncated", pyarrow.bool_()),
    ]
)
_LONGEST = {"prompt": LONGEST_TEXT, "response": LONGEST_TEXT}


def write_items(items: Sequence[Item], path: Path) -> None:
    """Write items as parquet with checksums, completely or not at all.

    Args:
        items: their texts are cut to `LONGEST_TEXT` and `LONGEST_ANSWER` characters.
        path: the file to write.

    Raises:
        OSError: the disk is full.
    """
    rows = [{name: _storable(name, value) for name, value in item.items()} for item in items]
    table = pyarrow.Table.from_pylist(rows, schema=_SCHEMA)
    # The pages of a dictionary have no checksum, so there is none; the compression finds texts that repeat.
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "zstd"}
    write_whole(path, lambda file: parquet.write_table(table, file, **options))


def read_items(path: Path, *, count: int) -> list[Item] | None:
    """Return the items of a file; None if there is no such file, or it is not what `write_items` wrote.

    Args:
        path: of the file.
        count: of the items it must contain.
    """
    if not path.is_file():
        return None
    try:
        # Opened here, because pyarrow itself refuses a path that is not UTF-8.
        with path.open("rb") as handle:
            file = parquet.ParquetFile(handle, page_checksum_verification=True)
            # Before anything is read: a file of another origin may contain any number of rows.
            if file.schema_arrow.equals(_SCHEMA) and file.metadata.num_rows == count:
                items: list[Any] = file.read().to_pylist()
                for item in items:  # pyarrow returns a map as pairs
                    item["reward_parts"] = dict(item["reward_parts"] or ())
                return items
        reason = "it is another table"
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    warnings.warn(f"{path} is not what was written ({reason}); its responses are sampled again", stacklevel=2)
    return None


def _storable(name: str, value: object) -> object:
    """Return a value of bounded size and valid UTF-8: a model may write half a character."""
    if not isinstance(value, str):
        return value
    return cut(value, _LONGEST.get(name, LONGEST_ANSWER)).encode("utf-8", errors="replace").decode("utf-8")
