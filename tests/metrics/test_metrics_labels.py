"""Any labels are counted, over batches and over ranks that have seen different ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import start_method

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import LabelFractions
from ippo_lightning.metrics.labels import MAX_LABELS, OTHER_LABELS
from ippo_lightning.tasks import MAX_LABEL_LENGTH, Label

SINGLE_PRECISION = 1e-6  # a fraction is float32


def counted(*batches: list[str | None]) -> dict[str, float]:
    metric = LabelFractions()
    for batch in batches:
        metric.update(batch)
    return {label: float(value) for label, value in metric.compute().items()}


def test_the_librarys_own_labels_are_all_there_in_their_order() -> None:
    found = counted([Label.FAITHFUL, "faithful", Label.SHORTCUT, "wrong_answer"])
    assert list(found.items()) == [
        ("faithful", 0.5),
        ("false_positive", 0.0),
        ("shortcut", 0.25),
        ("nonsense", 0.0),
        ("wrong_answer", 0.25),
    ]


def test_of_other_labels_those_seen_are_there() -> None:
    assert counted(["polite", "rude"], ["rude", "faithful"]) == {"faithful": 0.25, "polite": 0.25, "rude": 0.5}


def test_responses_without_a_label_count_as_responses() -> None:
    assert counted(["polite", None, None, None]) == {"polite": 0.25}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_labels_there_are_no_entries() -> None:
    assert counted() == counted([None, None]) == {}


def test_reset_forgets() -> None:
    metric = LabelFractions()
    metric.update(["polite"])
    metric.reset()
    metric.update(["rude"])
    assert set(metric.compute()) == {"rude"}


def test_a_label_of_any_characters_comes_back_as_it_was() -> None:
    labels = ["é漢😀", "a b/c", "x" * MAX_LABEL_LENGTH, "\x00\ud800"]
    assert set(counted(labels)) == set(labels)


@pytest.mark.parametrize("label", ["", "x" * (MAX_LABEL_LENGTH + 1)], ids=["empty", "long"])
def test_what_is_no_label_is_named(label: str) -> None:
    with pytest.raises(UserError, match=r"^metrics\.labels: .* expected 1 to 80 characters") as caught:
        counted([label])
    assert len(str(caught.value)) < 200


def test_many_labels_are_bounded_and_the_rarest_are_counted_together() -> None:
    labels = [f"label {number}" for number in range(200) for _ in range(1 + (number < 10))]
    found = counted(labels)
    assert len(found) == MAX_LABELS
    assert sum(found.values()) == pytest.approx(1.0, abs=SINGLE_PRECISION)
    assert all(found[f"label {number}"] == pytest.approx(2 / 210, abs=SINGLE_PRECISION) for number in range(10))
    assert found[OTHER_LABELS] == pytest.approx((210 - 20 - 53) / 210, abs=SINGLE_PRECISION)


def test_a_batch_has_fractions_of_its_own_while_all_are_counted() -> None:
    metric = LabelFractions()
    first, second = metric(["a", "b"]), metric(["b", "b"])
    assert {label: float(value) for label, value in first.items()} == {"a": 0.5, "b": 0.5}
    assert {label: float(value) for label, value in second.items()} == {"b": 1.0}
    assert {label: float(value) for label, value in metric.compute().items()} == {"a": 0.25, "b": 0.75}


# the ranks see different labels, in different orders and numbers; in the last case one sees nothing
RANKS: list[tuple[list[str | None], list[str | None]]] = [
    (["a", "b", "b"], ["c", "b", None, "a", "d"]),
    (["a"], ["z", "y", "x", "w"]),
    ([Label.FAITHFUL], [Label.SHORTCUT, "faithful"]),
    ([], ["b", None]),
    ([], []),
]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for labels in RANKS:
        metric = LabelFractions()
        mine = labels[rank]
        random.Random(rank).shuffle(mine)
        for start in range(0, len(mine), 2):
            metric.update(mine[start : start + 2])
        found.append([(label, float(value)) for label, value in metric.compute().items()])
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_that_see_different_labels_agree_on_the_fractions_of_all(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method=start_method())
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for (first, second), found in zip(RANKS, ranks[0], strict=True):
        everything = [*first, *second]
        expected = {label: count / len(everything) for label, count in Counter(everything).items() if label}
        assert {label: value for label, value in found if value} == pytest.approx(expected, abs=SINGLE_PRECISION)
