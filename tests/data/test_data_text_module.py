"""One data module for any task: a name, an object or a class of the user's own, and the batches it promises."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import TASKS, ArithmeticTask

SIZES = {
    "num_train": 90,
    "num_validation": 20,
    "num_test": 30,
    "num_demonstrations": 50,
    "num_influence_demonstrations": 10,
}


class Letters:
    """A task that inherits from nothing."""

    def __init__(self, letters: str = "abc", prepared: list[str] | None = None) -> None:
        self.letters = letters
        self.prepared = [] if prepared is None else prepared

    def prepare(self) -> None:
        self.prepared.append(self.letters)

    def rows(self, split: str) -> list[dict[str, Any]]:
        rows = [{"prompt": letter, "example": {"answer": letter.upper()}} for letter in self.letters]
        return [{**row, "response": "r"} for row in rows] if split in ("demonstrations", "influence") else rows

    def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> bool:
        return response == example["answer"]


def module(*, sizes: Mapping[str, int] = SIZES, **changes: Any) -> TextDataModule:
    made = TextDataModule(ArithmeticTask(**sizes), **{"batch_size": 16, "evaluation_batch_size": 8, **changes})
    made.prepare_data()
    made.setup("fit")
    return made


def prompts(batches: object) -> list[str]:
    return [prompt for batch in batches for prompt in batch["prompts"]]


def fingerprint(given: object) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        ({}, {}, "7acd18f300118146"),
        (
            {
                "num_train": 60,
                "num_validation": 10,
                "num_test": 12,
                "num_influence_demonstrations": 8,
                "num_demonstrations": 40,
                "seed": 3,
            },
            {"batch_size": 16, "stage": "sft", "seed": 3},
            "b22e002e831924de",
        ),
    ],
    ids=["defaults", "sft"],
)
def test_the_batches_of_a_seed_never_change(task: dict[str, Any], settings: dict[str, Any], expected: str) -> None:
    """Hashes of the first version of these batches; published results depend on every bit of them."""
    made = TextDataModule(ArithmeticTask(**task), **settings)
    made.setup()
    assert fingerprint(list(made.train_dataloader())) == expected


@pytest.mark.parametrize(
    ("stage", "keys"), [("sft", ["examples", "prompts", "responses"]), ("rl", ["examples", "prompts"])]
)
def test_batches_are_plain_lists_of_text(stage: str, keys: list[str]) -> None:
    made = module(stage=stage)
    batches = list(made.train_dataloader())
    assert len(batches) == len(made.train_dataloader())
    for batch in batches:
        assert sorted(batch) == keys
        assert {len(column) for column in batch.values()} <= {16, 90 % 16, 50 % 16}


def test_sft_trains_on_demonstrations_and_rl_on_prompts() -> None:
    for stage, rows in (("sft", module().splits.demonstrations), ("rl", module().splits.prompts)):
        assert sorted(prompts(module(stage=stage).train_dataloader())) == sorted(row["prompt"] for row in rows)


def test_influence_demonstrations_are_all_there_and_in_order() -> None:
    made = module()
    batches = made.influence_dataloader()
    assert [len(batch["prompts"]) for batch in batches] == [8, 2]
    assert prompts(batches) == [row["prompt"] for row in made.splits.influence]
    assert [text for batch in batches for text in batch["responses"]] == [
        row["response"] for row in made.splits.influence
    ]


def test_the_state_of_pythons_and_torchs_generators_does_not_matter() -> None:
    expected = list(module().train_dataloader())
    random.seed(5)
    torch.manual_seed(5)
    assert list(module().train_dataloader()) == expected


def test_each_epoch_has_an_order_of_its_own_that_can_be_repeated() -> None:
    loader = module().train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(prompts(loader))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != [row["prompt"] for row in module().splits.prompts]


def test_the_seed_changes_the_order_and_not_the_problems() -> None:
    first, second = module(seed=1), module(seed=2)
    assert first.splits == second.splits
    assert prompts(first.train_dataloader()) != prompts(second.train_dataloader())


def test_evaluation_is_in_order_every_time() -> None:
    made = module()
    for rows, loader in ((made.splits.validation, made.val_dataloader), (made.splits.test, made.test_dataloader)):
        assert prompts(loader()) == prompts(loader()) == [row["prompt"] for row in rows]


def test_a_second_setup_keeps_the_rows() -> None:
    made = module()
    before = made.splits
    made.setup("test")
    assert made.splits is before


def test_a_loader_before_setup_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"call setup\(\)"):
        TextDataModule("arithmetic").train_dataloader()


def test_changing_an_example_of_a_batch_leaves_the_rows_alone() -> None:
    made = module()
    next(iter(made.val_dataloader()))["examples"][0]["answer"] = "changed"
    assert next(iter(made.val_dataloader()))["examples"][0]["answer"] != "changed"


# --- which task ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_short_name_is_a_task_with_its_defaults(name: str) -> None:
    made = TextDataModule(name).task
    assert type(made) is TASKS[name]


def test_an_object_of_the_users_own_is_prepared_and_read() -> None:
    task = Letters()
    made = TextDataModule(task, batch_size=2)
    made.prepare_data()
    made.setup()
    assert task.prepared == ["abc"]
    assert sorted(prompts(made.train_dataloader())) == ["a", "b", "c"]
    assert made.task is task


def test_a_task_without_preparation_needs_none() -> None:
    class Small:
        def rows(self, split: str) -> list[dict[str, Any]]:
            return []

        def grade(self, prompt: str, response: str, example: Mapping[str, Any]) -> bool:
            return True

    made = TextDataModule(Small())
    made.prepare_data()
    made.setup()
    assert list(made.train_dataloader()) == list(made.val_dataloader()) == made.influence_dataloader() == []


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("arithmetics", r"'arithmetics' is unknown; expected arithmetic, gsm8k, word_problems, or a class_path"),
        (ArithmeticTask, r"ArithmeticTask is no task; expected an object"),
        (object(), r"builtins\.object is no task; expected an object with rows\(split\) and grade"),
    ],
    ids=["name", "class", "object"],
)
def test_what_is_no_task_is_named(task: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.task: .*{said}|^data\.task: {said}") as caught:
        TextDataModule(task)
    assert "\n" not in str(caught.value)


class Wrong(Letters):
    """A task whose rows are not as they must be."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def rows(self, split: str) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"returned NoneType; expected a sequence"),
        ((row for row in []), r"returned generator; expected a sequence"),
        (["text"], r"row 0 is str; expected a mapping with prompt, example"),
        ([{"example": {}}], r"prompt of row 0 is missing; expected text"),
        ([{"prompt": 3, "example": {}}], r"prompt of row 0 is int; expected text"),
        ([{"prompt": "a"}], r"example of row 0 is missing; expected a mapping"),
        ([{"prompt": "a", "example": "b"}], r"example of row 0 is str; expected a mapping"),
        ([{"prompt": "a", "example": {}}], r"\('demonstrations'\): response of row 0 is missing; expected text"),
    ],
    ids=["none", "generator", "text", "no prompt", "number", "no example", "text as example", "no response"],
)
def test_a_row_that_is_not_as_it_must_be_is_named_in_setup(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.task: .*Wrong\.rows.*{said}") as caught:
        TextDataModule(Wrong(given)).setup()
    assert "\n" not in str(caught.value)


class Raising(Letters):
    """A task that fails for one split, at once or when its first row is read."""

    def __init__(self, error: Exception, *, is_late: bool) -> None:
        super().__init__()
        self.error = error
        self.is_late = is_late

    def rows(self, split: str) -> Any:
        if split != "validation":
            return super().rows(split)
        if self.is_late:
            return LateRows(self.error)
        raise self.error


class LateRows(Sequence[Any]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "at the first row"])
@pytest.mark.parametrize(
    "error", [KeyError("no\nkey"), OSError("x" * 1000), ZeroDivisionError()], ids=["key", "file", "division"]
)
def test_a_task_that_raises_is_one_line_with_its_split(error: Exception, is_late: bool) -> None:
    with pytest.raises(UserError) as caught:
        TextDataModule(Raising(error, is_late=is_late)).setup()
    name = type(error).__name__
    assert re.match(rf"data\.task: \S*Raising\.rows\('validation'\) raised {name}: ", str(caught.value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("is_late", [False, True])
def test_a_line_that_the_task_wrote_for_the_user_stays(is_late: bool) -> None:
    with pytest.raises(UserError, match=r"^task\.path: x does not exist$"):
        TextDataModule(Raising(UserError("task.path: x does not exist"), is_late=is_late)).setup()


def test_rows_may_be_any_sequence() -> None:
    class Lazy(Sequence):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> dict[str, Any]:
            return {"prompt": str(range(3)[place]), "example": {}, "response": ""}

    made = TextDataModule(Wrong(Lazy()), evaluation_batch_size=2)
    made.setup()
    assert prompts(made.influence_dataloader()) == prompts(made.val_dataloader()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stage": "ppo"}, "stage"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size"),
        ({"num_workers": -1}, "num_workers"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_before_any_work(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{field}: "):
        TextDataModule("arithmetic", **changes)


def test_prompts_that_are_in_two_splits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        TextDataModule(Letters("abc")).setup()
        module()
    assert "data.task: 3 prompts are in prompts and in validation, such as 'a'" in caplog.text
    assert "prompts and in demonstrations" not in caplog.text  # both are training
    assert {record.name for record in caplog.records} == {"ippo_lightning.data.text_module"}
    assert len(caplog.records) == 9  # all pairs of five splits but that one, and none of the arithmetic task
