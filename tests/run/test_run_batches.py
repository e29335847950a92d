"""A resumed run gets the batches that the unbroken run would have got, or is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.data import TextDataModule
from ippo_lightning.data.loaders import TextRows, collate_rows, training_loader
from ippo_lightning.errors import UserError
from ippo_lightning.run.batches import TrainingBatches

ROWS = [{"prompt": f"{number}+1?", "example": {"answer": str(number + 1)}} for number in range(13)]
BATCHES = [collate_rows(ROWS[start : start + 3]) for start in range(0, 13, 3)]


class Stream(IterableDataset):
    """Rows without a length, in an order that is drawn from a library's random stream."""

    def __init__(self, draw: Callable[[int], int] | None = None) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[Any]:
        for place in range(len(ROWS)):
            yield ROWS[place if self.draw is None else self.draw(len(ROWS))]


class CanStartAgain:
    """An iterable that is no loader of torch, with another order in each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        yield from BATCHES[self.epoch % 5 :] + BATCHES[: self.epoch % 5]


def streamed(draw: Callable[[int], int] | None = None, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Stream(draw), batch_size=3, collate_fn=collate_rows, **settings)


LOADERS: dict[str, Callable[[], Any]] = {
    "loader of this library": lambda: training_loader(ROWS, batch_size=3, seed=1),
    "shuffled without a seed": lambda: DataLoader(TextRows(ROWS), batch_size=3, shuffle=True, collate_fn=collate_rows),
    "list of batches": lambda: list(BATCHES),
    "tuple of batches": lambda: tuple(BATCHES),
    "stream in order": streamed,
    "stream from torch": lambda: streamed(lambda most: int(torch.randint(most, ()))),
    "stream from numpy": lambda: streamed(np.random.randint),
    "stream from python": lambda: streamed(random.randrange),
    "other iterable": CanStartAgain,
}


def run(batches: TrainingBatches, count: int) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    """Take batches as the loop does; return their prompts and the position behind each."""
    taken: list[Any] = []
    while len(taken) < count:
        if batches.peek() is None:
            batches.end_epoch()
            continue
        prompts = tuple(batches.take()["prompts"])
        if batches.is_last:
            batches.end_epoch()
        torch.rand(5)  # the iteration
        taken.append((prompts, dict(batches.position)))
    return taken


def begun(loader: Any, position: dict[str, int] | None = None) -> TrainingBatches:
    batches = TrainingBatches(position, seed=3)
    batches.begin(loader)
    return batches


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_go_on_from_every_position(kind: str) -> None:
    whole = run(begun(LOADERS[kind]()), 13)
    for place, (_, position) in enumerate(whole[:-1]):
        torch.rand(place)  # the stream of training is somewhere else
        assert run(begun(LOADERS[kind](), position), 12 - place) == whole[place + 1 :]


@pytest.mark.parametrize("kind", LOADERS)
def test_loading_draws_nothing_from_the_streams_of_training(kind: str) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[2], torch.get_rng_state().tolist()

    batches = begun(LOADERS[kind]())
    before = states()
    for _ in range(12):
        if batches.peek() is None:
            batches.end_epoch()
        else:
            batches.take()
    assert states() == before


def test_epochs_of_a_drawn_order_differ() -> None:
    taken = run(begun(LOADERS["shuffled without a seed"]()), 10)
    first, second = ([prompts for prompts, _ in taken[start : start + 5]] for start in (0, 5))
    assert first != second
    assert sorted(sum(first, ())) == sorted(sum(second, ()))


def generator() -> Iterator[Any]:
    yield from BATCHES


@pytest.mark.parametrize(
    ("loader", "position", "said"),
    [
        (lambda: CanStartAgain(), {"epoch": 0, "batch": 2}, "batch 2 of epoch 0 is not the one before the checkpoint"),
        (lambda: BATCHES[:1], {"epoch": 0, "batch": 2}, "behind batch 2 of epoch 0, and the training loader has 1"),
        (lambda: BATCHES[::-1], {"epoch": 0, "batch": 3}, "batch 3 of epoch 0 is not the one before the checkpoint"),
    ],
    ids=["another order", "fewer batches", "other data"],
)
def test_a_loader_that_gives_other_batches_is_refused(loader: Any, position: dict[str, int], said: str) -> None:
    digest = {"digest": 12345}
    with pytest.raises(UserError, match=said) as caught:
        begun(loader(), {**digest, **position}).peek()
    assert "\n" not in str(caught.value)


def test_a_source_that_cannot_be_read_twice_is_refused_at_its_second_epoch_and_on_resume() -> None:
    batches = begun(generator())
    position = run(batches, 3)[-1][1]
    used = generator()
    next(used)
    with pytest.raises(UserError, match="the position in the data is unknown"):
        begun(used, position).peek()
    with pytest.raises(UserError, match=r"epoch 1 of the training loader has 0 batches; expected one that can start"):
        run(batches, 3)


def test_a_checkpoint_without_a_digest_goes_on() -> None:
    """Earlier versions wrote none."""
    assert run(begun(list(BATCHES), {"epoch": 0, "batch": 2}), 1)[0][0] == tuple(BATCHES[2]["prompts"])


def test_an_error_of_the_loader_is_one_line() -> None:
    def broken() -> Iterator[Any]:
        yield BATCHES[0]
        raise KeyError("row\n7")

    batches = begun(broken())
    batches.take()
    with pytest.raises(UserError, match=r"data: the training loader raised KeyError: 'row\\n7'"):
        batches.peek()


class OwnData(TextDataModule):
    """The tiny data with another kind of training loader."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(tiny_data().task, batch_size=8)
        self.make = make

    def train_dataloader(self) -> Any:
        return self.make()


def of_tiny_rows(kind: str) -> Callable[[], Any]:
    data = tiny_data()
    data.setup()
    batches = list(data.train_dataloader())
    rows = data.train_dataloader().dataset
    return {
        "list": lambda: batches,
        "shuffled": lambda: DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate_rows),
    }[kind]


@pytest.mark.parametrize("kind", ["list", "shuffled"])
def test_a_run_on_any_loader_resumes_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole, broken, resumed = tiny_module(), tiny_module(), tiny_module()
    tiny_loop(tmp_path / "whole", whole, max_iterations=6, data=OwnData(of_tiny_rows(kind))).fit()
    tiny_loop(tmp_path / "broken", broken, max_iterations=3, data=OwnData(of_tiny_rows(kind))).fit()
    data = OwnData(of_tiny_rows(kind))
    tiny_loop(tmp_path / "broken", resumed, max_iterations=6, data=data, resume=True).fit()
    assert same(trainable(whole), trainable(resumed))


def test_evaluation_takes_a_list_of_batches(tmp_path: Path) -> None:
    class Lists(TextDataModule):
        def val_dataloader(self) -> Any:
            return list(super().val_dataloader())

        test_dataloader = val_dataloader

    def fitted(data: TextDataModule, name: str) -> dict[str, float]:
        loop = tiny_loop(tmp_path / name, tiny_module(), data=data, evaluate_every_n_iterations=1, test_at_end=True)
        results = loop.fit()
        assert loop.describe_evaluation(results)["num_prompts"] == 4
        return results

    plain = TextDataModule(tiny_data().task, batch_size=8)
    plain.test_dataloader = plain.val_dataloader  # type: ignore[method-assign]
    # As text: without right answers the fraction of unfaithful ones is NaN, which is equal to nothing.
    assert str(fitted(Lists(tiny_data().task, batch_size=8), "lists")) == str(fitted(plain, "plain"))


class Foreign(LightningDataModule):
    """A data module that knows nothing of this library, with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def train_dataloader(self) -> Any:
        return list(BATCHES)

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls.append(f"load {state_dict['mine']}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")


def test_a_foreign_data_module_gets_its_state_back(tmp_path: Path) -> None:
    first, second = Foreign(), Foreign()
    tiny_loop(tmp_path / "run", tiny_module(), max_iterations=1, data=first).fit()
    tiny_loop(tmp_path / "run", tiny_module(), max_iterations=2, data=second, resume=True).fit()
    assert first.calls == ["teardown fit"]
    assert second.calls == ["load 7", "teardown fit"]
