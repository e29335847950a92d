"""All metrics at once: the names that a log shows, and parts that add up, over batches and ranks."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import start_method
from torchmetrics import Metric

from ippo_lightning.errors import UserError
from ippo_lightning.metrics import ReasoningMetrics, reference_answers
from ippo_lightning.tasks import Grade, grade_arithmetic

PROMPT = "7+12-5?"
RESPONSES = ["7+12=19;19-5=14;#14", "#14", "9+5=14;#14", "7+12=20;#14", "#13", "#12", "none"]
SINGLE_PRECISION = 1e-6  # the states are float32


def graded(*responses: str) -> list[Grade]:
    return [grade_arithmetic(PROMPT, response, {}) for response in responses]


def sampled(num_prompts: int, num_samples: int = 4) -> list[list[Grade]]:
    choose = random.Random(0)
    return [graded(*choose.choices(RESPONSES, k=num_samples)) for _ in range(num_prompts)]


def values(metrics: ReasoningMetrics) -> dict[str, float]:
    return pytest.approx(metrics.compute(), abs=SINGLE_PRECISION, nan_ok=True)


def test_the_numbers_of_two_prompts() -> None:
    metrics = ReasoningMetrics(k=2)
    metrics.update([graded(*RESPONSES[:4]), graded("#13", "#13", "#14", "none")], references=["14", "14"])
    assert metrics.compute() == pytest.approx(
        {
            "exact_match": 5 / 8,
            "majority_vote": 1 / 2,
            "pass_at_k": (1 + 1 / 2) / 2,
            "unfaithful_fraction": 4 / 5,
            "label/faithful": 1 / 8,
            "label/false_positive": 1 / 8,
            "label/shortcut": 2 / 8,
            "label/nonsense": 1 / 8,
            "label/wrong_answer": 3 / 8,
        },
        abs=SINGLE_PRECISION,
    )


def test_the_metrics_are_plain_floats() -> None:
    metrics = ReasoningMetrics()
    metrics.update([graded("#14")], references=["14"])
    assert {type(value) for value in metrics.compute().values()} == {float}


def test_reset_forgets() -> None:
    metrics, fresh = ReasoningMetrics(), ReasoningMetrics()
    metrics.update(sampled(5), references=["14"] * 5)
    metrics.reset()
    for each in (metrics, fresh):
        each.update([graded("#13")], references=["14"])
    assert metrics.compute() == values(fresh)


def test_batches_add_up() -> None:
    grades = sampled(30)
    everything, parts = ReasoningMetrics(k=3), ReasoningMetrics(k=3)
    everything.update(grades, references=["14"] * 30)
    for start, end in ((0, 1), (1, 17), (17, 30)):
        parts.update(grades[start:end], references=["14"] * (end - start))
    assert parts.compute() == values(everything)


def test_the_states_of_two_ranks_reduce_to_the_state_of_all() -> None:
    grades = sampled(31)
    everything, first, second = (ReasoningMetrics(k=3) for _ in range(3))
    everything.update(grades, references=["14"] * 31)
    first.update(grades[:9], references=["14"] * 9)
    second.update(grades[9:], references=["14"] * 22)
    for name, metric in everything.named_children():
        assert isinstance(metric, Metric)
        for state, value in metric.metric_state.items():
            parts = [each.get_submodule(name).metric_state[state] for each in (first, second)]
            reduced = metric._reductions[state](torch.stack(parts))
            if state == "table":  # the order of its rows does not matter
                reduced, value = (torch.tensor(sorted(table.tolist())) for table in (reduced, value))
            torch.testing.assert_close(reduced, value)


def test_nothing_goes_into_a_checkpoint_and_half_precision_leaves_the_counts_alone() -> None:
    metrics = ReasoningMetrics()
    assert not metrics.state_dict()
    metrics.half()
    metrics.update([graded("#14", "#13")] * 3000, references=["14"] * 3000)
    assert metrics.compute()["exact_match"] == 0.5


def test_any_object_with_the_four_attributes_will_do() -> None:
    @dataclass
    class Other:
        label: str = "faithful"
        answer: str = "14"
        correct: bool = True
        faithful: bool = True

    metrics = ReasoningMetrics()
    metrics.update([[Other()]], references=["14"])
    assert metrics.compute()["label/faithful"] == 1.0


def test_labels_of_the_users_own_are_counted_and_say_nothing_about_reasoning() -> None:
    metrics = ReasoningMetrics(k=2)
    metrics.update(
        [
            [Grade(True, "polite", "14"), Grade(False, "rude", "3")],
            [Grade(True, "polite", "14"), Grade(True, "curt", "14")],
        ],
        references=["14", "14"],
    )
    found = metrics.compute()
    assert math.isnan(found.pop("unfaithful_fraction"))
    assert found == pytest.approx(
        {
            "exact_match": 3 / 4,
            "majority_vote": 3 / 4,
            "pass_at_k": 1.0,
            "label/curt": 1 / 4,
            "label/polite": 2 / 4,
            "label/rude": 1 / 4,
        },
        abs=SINGLE_PRECISION,
    )


def test_grades_without_labels_and_answers_have_exact_match_and_pass_at_k_alone() -> None:
    metrics = ReasoningMetrics(k=2)
    metrics.update([[Grade(True), Grade(False)], [Grade(False), Grade(False)]], references=[None, None])
    found = metrics.compute()
    assert set(found) == {"exact_match", "majority_vote", "pass_at_k", "unfaithful_fraction"}
    assert (found["exact_match"], found["pass_at_k"]) == (0.25, 0.5)
    assert math.isnan(found["majority_vote"])
    assert math.isnan(found["unfaithful_fraction"])


def test_right_responses_without_an_answer_show_that_nothing_can_vote() -> None:
    metrics = ReasoningMetrics()
    metrics.update([[Grade(True)], [Grade(False)]], references=["14", "14"])
    assert math.isnan(metrics.compute()["majority_vote"])


def test_unknown_reasoning_is_left_out_of_the_unfaithful_fraction() -> None:
    metrics = ReasoningMetrics()
    metrics.update([[Grade(True, "polite", "14")], *([grade] for grade in graded("#14", RESPONSES[0]))], ["14"] * 3)
    assert metrics.compute()["unfaithful_fraction"] == 0.5


def test_the_reference_is_the_answer_of_the_example_as_text() -> None:
    assert reference_answers([{"answer": "14"}, {"answer": 14}, {}, {"answer": None}]) == ["14", "14", None, None]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_prompts_change_nothing() -> None:
    metrics = ReasoningMetrics()
    metrics.update([], references=[])
    assert all(math.isnan(value) for value in metrics.compute().values())


def test_wrong_numbers_of_samples_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"\[1, 2\] samples per prompt; expected the same number"):
        ReasoningMetrics().update([graded("#14"), graded("#14", "#13")], references=["14", "14"])
    with pytest.raises(UserError, match=r"k = 3 with 1 samples per prompt"):
        ReasoningMetrics(k=3).update([graded("#14")], references=["14"])


def _rank(rank: int, store: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = ReasoningMetrics(k=3)
    grades = sampled(31)
    mine = grades[:9] if rank == 0 else grades[9:]
    metrics.update(mine, references=["14"] * len(mine))
    results[rank] = metrics.compute()
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_computes(tmp_path) -> None:
    everything = ReasoningMetrics(k=3)
    everything.update(sampled(31), references=["14"] * 31)
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.start_processes(_rank, args=(str(tmp_path / "store"), results), nprocs=2, start_method=start_method())
        assert results[0] == results[1] == values(everything)
