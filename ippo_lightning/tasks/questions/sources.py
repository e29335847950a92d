"""Where questions come from, and which columns contain what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ippo_lightning.errors import UserError, require_choice, require_range

LayoutName = Literal["columns", "asdiv", "college_math", "ecqa", "gsm8k", "math", "mawps", "olympiadbench", "svamp"]
"""How the rows of a source are written; `columns` is the user's own."""
AnswerKindName = Literal["boxed", "gsm8k", "hash", "number", "option"]
"""How the answer stands in a response; see `ippo_lightning.tasks.questions.answer_kinds`."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    r"""Which columns of a row contain what.

    A value is the name of a column, with dots for what lies inside (`answers.text.0`), or a text with names in braces,
    such as `"{story} {question}"` or `"{steps}\n#### {result}"`.

    Args:
        prompt: the question.
        response: the demonstration; null if the rows have none.
        answer: the right answer; null if the rows have none.
        messages: a conversation in place of `prompt`: a list of `role` and `content`, or of `from` and `value`, also as
            JSON text. A last turn of the assistant is the response.
        system: the system message of the row. The policy then reads messages, and needs `chat_template`.
        keep: columns that rewards and graders get in `example`, under their own names.
        first_words: the question is this many first words of `prompt`, which the policy continues; null for all of it.

    Raises:
        UserError: there is neither a prompt nor messages, or `first_words` is below 1 or has no prompt to cut.
    """

    prompt: str | None = None
    response: str | None = None
    answer: str | None = None
    messages: str | None = None
    system: str | None = None
    keep: list[str] = field(default_factory=list)
    first_words: int | None = None

    def __post_init__(self) -> None:
        if self.prompt is None and self.messages is None:
            raise UserError("columns.prompt: null, and columns.messages: null; expected the name of a column for one")
        if self.first_words is not None:
            require_range("columns.first_words", self.first_words, at_least=1, integer=True)
            if self.prompt is None:
                raise UserError("columns.first_words: given without columns.prompt; leave it out, or name a prompt")


@dataclass(frozen=True, kw_only=True)
class Source:
    r"""A file, a folder, or a data set on the Hub, with the columns to read.

    Args:
        path: a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), several of them (`folder/part-*.jsonl`), a folder
            of such files, a folder that `datasets` has saved, or the id of a data set on the Hub.
        columns: of a file of yours.
        layout: `columns`, or the name of a public data set, whose columns are known.
        split: of the Hub or of a saved data set, by default `train`; of a folder of files, the beginning of their
            names.
        config_name: of a data set on the Hub, or several, one after the other.
        revision: branch, tag or commit of a data set on the Hub; null for its newest.
        streaming: read a data set of the Hub without a copy on the disk.
        column_names: of a `.csv` or `.tsv` file whose first line is a row already.
        num_rows: the first rows that are read; null for all.
        answer_kind: where the answer stands in a response: after `####` (`hash`), in the last `\boxed{}` (`boxed`),
            the last number (`number`), or the last line (`option`, also after `####`). `gsm8k` is a number after `####`
            with a check of `<<...>>` steps. A public data set has its own.
        unfit_rows: what happens to a row that does not fit: `refuse` ends the run with its file and line, `drop` leaves
            it out, and the log tells which.
        weight: how often each row is in an epoch of training; 2 is twice, 0.5 is half of the rows.

    Raises:
        UserError: an argument is out of its range, or columns are missing.
    """

    path: str
    columns: Columns | None = None
    layout: LayoutName = "columns"
    split: str | None = None
    config_name: str | list[str] | None = None
    revision: str | None = None
    streaming: bool = False
    column_names: list[str] | None = None
    num_rows: int | None = None
    answer_kind: AnswerKindName | None = None
    unfit_rows: Literal["refuse", "drop"] = "refuse"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path: empty; expected a file, a folder or a Hub id")
        require_choice("layout", self.layout, LayoutName.__args__)  # type: ignore[attr-defined]
        require_choice("unfit_rows", self.unfit_rows, ("refuse", "drop"))
        require_range("weight", self.weight, above=0, below=math.inf)
        require_range("weight", self.weight, at_most=1000)
        if self.num_rows is not None:
            require_range("num_rows", self.num_rows, at_least=1, integer=True)
        if self.answer_kind is not None:
            require_choice("answer_kind", self.answer_kind, AnswerKindName.__args__)  # type: ignore[attr-defined]
        if self.layout == "columns" and self.columns is None:
            raise UserError(f"columns: null for {self.path!r}; expected the names of its columns, such as prompt: text")
        if self.layout != "columns" and self.columns is not None:
            raise UserError(f"columns: given, and layout: {self.layout} has its own; leave one of them out")
        has_answers = self.columns is not None and self.columns.answer is not None
        if has_answers and self.answer_kind is None:
            raise UserError(
                f"answer_kind: null, and columns.answer is given; expected one of {', '.join(AnswerKindName.__args__)}"  # type: ignore[attr-defined]
            )

    @property
    def config_names(self) -> list[str | None]:
        """The configurations on the Hub that are read, one after the other."""
        return list(self.config_name) if isinstance(self.config_name, list) else [self.config_name]
