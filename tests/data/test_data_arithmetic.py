"""The arithmetic data module: disjoint splits, the same for the same seed, and the batches it promises."""

from __future__ import annotations

import pytest

from ippo_lightning.data import ArithmeticDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.tasks import grade_arithmetic

SIZES = {
    "num_train": 90,
    "num_validation": 20,
    "num_test": 30,
    "num_demonstrations": 50,
    "num_influence_demonstrations": 10,
    "batch_size": 16,
    "evaluation_batch_size": 8,
}


def module(**changes: object) -> ArithmeticDataModule:
    made = ArithmeticDataModule(**{**SIZES, **changes})
    made.prepare_data()
    made.setup("fit")
    return made


def prompts(batches: object) -> list[str]:
    return [prompt for batch in batches for prompt in batch["prompts"]]


def test_no_problem_is_in_two_splits() -> None:
    made = module()
    splits = [
        prompts(batches)
        for batches in (
            made.train_dataloader(),
            made.val_dataloader(),
            made.test_dataloader(),
            made.influence_dataloader(),
        )
    ]
    assert [len(split) for split in splits] == [90, 20, 30, 10]
    assert len(set().union(*splits)) == 150


def test_demonstrations_are_over_training_problems() -> None:
    made = module(stage="sft")
    assert len(made.train_dataloader().dataset) == 50
    assert set(prompts(made.train_dataloader())) <= {row["prompt"] for row in made.splits.prompts}


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
        for prompt, example in zip(batch["prompts"], batch["examples"], strict=True):
            assert grade_arithmetic(prompt, f"#{example['answer']}", example).correct
            assert example["problem"] == prompt
            assert ("label" in example) == (stage == "sft")


def test_influence_demonstrations_are_all_there_in_order_and_clean() -> None:
    made = module()
    batches = made.influence_dataloader()
    assert [len(batch["prompts"]) for batch in batches] == [8, 2]
    assert prompts(batches) == [row["prompt"] for row in made.splits.influence]
    for batch in batches:
        for prompt, response, example in zip(batch["prompts"], batch["responses"], batch["examples"], strict=True):
            assert grade_arithmetic(prompt, response, example).faithful
            assert example["label"] == "faithful"


def test_noise_spoils_that_share_of_the_influence_demonstrations_and_nothing_else() -> None:
    noisy, clean = module(influence_noise=0.3), module()
    assert sum(row["example"]["label"] != "faithful" for row in noisy.splits.influence) == 3
    assert [row["prompt"] for row in noisy.splits.influence] == [row["prompt"] for row in clean.splits.influence]
    assert noisy.splits.demonstrations == clean.splits.demonstrations


def test_the_same_seed_gives_the_same_and_another_seed_something_else() -> None:
    assert module(seed=3).splits == module(seed=3).splits
    first, second = module(seed=3).splits, module(seed=4).splits
    for name in ("prompts", "demonstrations", "validation", "test", "influence"):
        assert getattr(first, name) != getattr(second, name)


def test_the_problems_of_every_split_are_the_same_for_sft_and_rl() -> None:
    expected = module().splits
    changed = module(stage="sft", unfaithful_fraction=1.0, batch_size=2).splits
    assert changed.test == expected.test
    assert changed.prompts == expected.prompts


def test_short_problems_are_shared_out_over_all_splits() -> None:
    splits = ArithmeticDataModule(num_train=2000, num_validation=300, num_test=300, max_terms=3, max_number=9)
    splits.setup()
    shares = [
        sum(row["prompt"].count("+") + row["prompt"].count("-") == 1 for row in rows) / len(rows)
        for rows in (splits.splits.test, splits.splits.validation, splits.splits.prompts)
    ]
    assert (
        max(shares) - min(shares) < 0.05
    )  # 162 short ones in 2,664 problems; drawn in order, the first split had half


def test_the_state_of_pythons_and_torchs_generators_does_not_matter() -> None:
    import random

    import torch

    expected = list(module().train_dataloader())
    random.seed(5)
    torch.manual_seed(5)
    assert list(module().train_dataloader()) == expected


def test_an_epochs_order_is_its_own_and_comes_again() -> None:
    loader = module().train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(prompts(loader))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != [row["prompt"] for row in module().splits.prompts]


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
        ArithmeticDataModule(**SIZES).train_dataloader()


def test_no_examples_of_a_batch_are_those_of_the_data_module() -> None:
    made = module()
    next(iter(made.val_dataloader()))["examples"][0]["answer"] = "changed"
    assert next(iter(made.val_dataloader()))["examples"][0]["answer"] != "changed"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stage": "ppo"}, "stage"),
        ({"num_train": -1}, "num_train"),
        ({"num_demonstrations": -1}, "num_demonstrations"),
        ({"stage": "sft", "num_demonstrations": 91}, "num_demonstrations"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"unfaithful_fraction": 1.1}, "unfaithful_fraction"),
        ({"influence_noise": -0.1}, "influence_noise"),
        ({"influence_noise": float("nan")}, "influence_noise"),
        ({"unfaithful_kinds": {"typo": 1.0}}, "unfaithful_kinds"),
        ({"operators": "/"}, "operators"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{field}: ") as caught:
        ArithmeticDataModule(**{**SIZES, **changes})
    assert "\n" not in str(caught.value)


def test_more_problems_than_exist_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"150 different problems are asked for, and only 50 exist"):
        module(max_terms=2, max_number=5, num_demonstrations=1)
