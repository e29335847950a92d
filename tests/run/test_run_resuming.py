"""A resumed run applies what the user has changed, or refuses it."""

from __future__ import annotations

import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.algorithms import AdaptiveKLController, FixedKLController
from ippo_lightning.callbacks import InfluenceFilter, IntrinsicStopping
from ippo_lightning.data import TextDataModule
from ippo_lightning.errors import UserError
from ippo_lightning.modules import OptimizerSettings
from ippo_lightning.run.environment import environment, warn_of_environment
from ippo_lightning.run.resuming import callback_settings, check_data, data_of, load_callbacks, saved_callbacks
from ippo_lightning.run.stable_text import plain_text, stable_text


def hyperparameters(loop: Any) -> dict[str, Any]:
    group = loop._optimizer.param_groups[0]
    return {name: group[name] for name in ("initial_lr", "betas", "eps", "weight_decay")}


def resumed(folder: Path, *, optimizer: dict[str, Any] | None = None, data: Any = None, **changes: Any) -> Any:
    settings = {name: changes.pop(name) for name in ("seed", "callbacks") if name in changes}
    module = tiny_module(optimizer=OptimizerSettings(**{"learning_rate": 1e-3, **(optimizer or {})}), **changes)
    loop = tiny_loop(folder, module, max_iterations=3, resume=True, data=data, **settings)
    loop.fit()
    return loop


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    tiny_loop(tmp_path / "run", tiny_module()).fit()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        ({"learning_rate": 1e-2}, "initial_lr", 1e-2),
        ({"weight_decay": 0.1}, "weight_decay", 0.1),
        ({"epsilon": 1e-5}, "eps", 1e-5),
        ({"betas": (0.5, 0.9)}, "betas", (0.5, 0.9)),
    ],
)
def test_a_changed_setting_of_the_optimizer_is_applied(
    changed: dict[str, Any], name: str, value: Any, begun: Path
) -> None:
    loop = resumed(begun, optimizer=changed)
    assert hyperparameters(loop)[name] == value
    entry = next(iter(loop._optimizer.state.values()))
    assert int(entry["step"]) > 2, "the moments are those of the checkpoint"


def test_a_changed_learning_rate_changes_the_steps(begun: Path, tmp_path: Path) -> None:
    tiny_loop(tmp_path / "other", tiny_module()).fit()
    plain = resumed(tmp_path / "other")
    changed = resumed(begun, optimizer={"learning_rate": 1e-2})
    assert not same(trainable(plain.module), trainable(changed.module))


def test_another_kind_of_optimizer_is_refused_and_the_folder_stays(begun: Path) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"optimizer\.kind: .* has the moments of AdamW, and this run has AdamW8bit"):
        resumed(begun, optimizer={"kind": "adamw_8bit"})
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": lambda: tiny_data(batch_size=4)}, r"data\.batch_size: .* has 8, and this run has 4"),
        ({"data": lambda: tiny_data(num_train=40)}, r"data: .* has 32 training rows, and this run has 40"),
        ({"data": lambda: tiny_data(max_number=9)}, r"data: the training rows are not those of"),
        ({"seed": lambda: 6}, r"seed_everything: .* has 5, and this run has 6"),
    ],
    ids=["batch size", "fewer rows", "other rows", "seed"],
)
def test_other_data_are_refused_because_the_position_is_in_those_of_the_checkpoint(
    changed: dict[str, Any], words: str, begun: Path
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        resumed(begun, **{name: make() for name, make in changed.items()})
    assert "\n" not in str(raised.value)


def test_the_same_run_is_not_refused_and_warns_of_nothing(begun: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="resume:")
        loop = resumed(begun)
    whole = tiny_module()
    tiny_loop(tmp_path / "whole", whole, max_iterations=3).fit()
    assert same(trainable(loop.module), trainable(whole))


@pytest.mark.parametrize("kind", [FixedKLController, AdaptiveKLController])
def test_a_changed_kl_coefficient_is_applied_and_an_unchanged_one_goes_on(kind: Any) -> None:
    first = kind(0.2)
    first.update(kl=100.0, num_episodes=5_000)
    same_setting, changed = kind(0.2), kind(0.7)
    same_setting.load_state_dict(json.loads(json.dumps(first.state_dict())))
    changed.load_state_dict(first.state_dict())
    assert same_setting.coef == first.coef
    assert changed.coef == 0.7


def stopping(**settings: Any) -> IntrinsicStopping:
    return IntrinsicStopping(**settings)


def counts(callbacks: list[Any]) -> list[int]:
    return [item.iterations_below for item in callbacks]


def saved(callbacks: list[Any], numbers: list[int]) -> Any:
    settings = callback_settings(callbacks)
    for item, number in zip(callbacks, numbers, strict=True):
        item.iterations_below = number
    return saved_callbacks(callbacks, settings)


def loaded(callbacks: list[Any], states: Any) -> list[int]:
    load_callbacks(callbacks, callback_settings(callbacks), states)
    return counts(callbacks)


def test_callbacks_find_their_state_whatever_their_order() -> None:
    states = saved([stopping(patience=2), stopping(patience=5)], [7, 9])
    assert loaded([stopping(patience=5), stopping(patience=2)], states) == [9, 7]
    assert loaded([stopping(patience=2), stopping(patience=5)], states) == [7, 9]


def test_a_callback_with_changed_settings_takes_the_state_that_is_left() -> None:
    states = saved([stopping(patience=2), stopping(patience=5)], [7, 9])
    assert loaded([stopping(patience=4), stopping(patience=2)], states) == [9, 7]


def test_a_callback_without_a_state_and_a_state_without_a_callback_are_named() -> None:
    states = saved([stopping(patience=2)], [7])
    with pytest.warns(UserWarning, match="the checkpoint has no state of IntrinsicStopping"):
        assert loaded([stopping(patience=2), stopping(patience=5)], states) == [7, 0]
    with pytest.warns(UserWarning, match="this run has no IntrinsicStopping"):
        load_callbacks([], [], states)


def test_the_settings_of_a_filter_tell_two_apart() -> None:
    made = [InfluenceFilter(power=0.5), InfluenceFilter(power=1.0), InfluenceFilter(power=0.5)]
    first, second, third = callback_settings(made)
    assert first == third != second


def test_a_stable_text_has_no_address_and_no_order_of_a_set_or_a_mapping() -> None:
    thing = {"function": stable_text, "object": object(), "set": {"b", "a"}, "tensor": torch.ones(2)}
    assert "0x" not in stable_text(thing)
    assert stable_text(thing) == stable_text(dict(reversed(thing.items())))
    assert plain_text(object()) == plain_text(object()) == "object"
    assert plain_text(stable_text) == "stable_text"
    assert plain_text(Decimal("1.50")) == "1.50"


@pytest.mark.parametrize("rows", [[1, 2, 3], iter([1, 2])], ids=["list", "iterator"])
def test_data_of_any_loader_have_an_identity(rows: Any, tmp_path: Path) -> None:
    mine = data_of(rows, seed=1)
    check_data(mine, mine, source=tmp_path)
    check_data(mine, None, source=tmp_path)


class OpensAtFirstUse(torch.utils.data.Dataset[Any]):
    """Rows that must not be read before the workers are forked."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("read in the main process")


def test_the_rows_of_a_users_data_set_are_not_read(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(OpensAtFirstUse(), batch_size=2, num_workers=1)
    mine = data_of(loader, seed=1)
    assert (mine["num_rows"], mine["rows"], mine["batch_size"]) == (3, "", 2)
    with pytest.raises(UserError, match="3 training rows, and this run has 4"):
        check_data({**mine, "num_rows": 4}, mine, source=tmp_path)


class BecomesUnreadable:
    """A callback whose state is plain at the start only."""

    state: Any = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["value"]

    def on_update_end(self, trainer: Any, pl_module: Any, stats: Any) -> None:
        self.state = Path("x")


def test_a_state_that_could_not_be_read_back_is_refused_before_it_is_written(tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path / "run", tiny_module(), callbacks=[BecomesUnreadable()])
    with pytest.raises(UserError, match=r"BecomesUnreadable.state_dict\(\) returned what a checkpoint cannot contain"):
        loop.fit()


class DrawsWhenItIsLoaded(TextDataModule):
    """A data module whose state takes a random number to load."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.rand(())


def test_what_a_data_module_draws_while_it_is_loaded_does_not_move_training(tmp_path: Path) -> None:
    def data() -> DrawsWhenItIsLoaded:
        return DrawsWhenItIsLoaded(tiny_data().task, batch_size=8)

    whole = tiny_module()
    tiny_loop(tmp_path / "whole", whole, data=data(), max_iterations=3).fit()
    tiny_loop(tmp_path / "run", tiny_module(), data=data()).fit()
    assert same(trainable(resumed(tmp_path / "run", data=data()).module), trainable(whole))


class SavesOnException(BecomesUnreadable):
    """Writes a checkpoint of its own after an error, as Lightning's `OnExceptionCheckpoint` does."""

    def on_update_end(self, trainer: Any, pl_module: Any, stats: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "own.ckpt")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "own.ckpt")


def test_a_refused_run_writes_over_no_checkpoint_of_a_callback(tmp_path: Path) -> None:
    tiny_loop(tmp_path / "run", tiny_module(), callbacks=[SavesOnException()]).fit()
    before = (tmp_path / "run" / "own.ckpt").read_bytes()
    with (
        pytest.raises(UserError, match=r"data\.batch_size"),
        pytest.warns(UserWarning, match="cannot be written before the run has begun"),
    ):
        resumed(tmp_path / "run", callbacks=[SavesOnException()], data=tiny_data(batch_size=4))
    assert (tmp_path / "run" / "own.ckpt").read_bytes() == before


def test_the_best_evaluation_is_of_the_metric_that_is_asked_for(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"evaluate_every_n_iterations": 1, "resume": True}
    tiny_loop(tmp_path / "run", tiny_module(), best_metric="label/wrong_answer", **numbers).fit()
    loop = tiny_loop(tmp_path / "run", tiny_module(), best_metric="exact_match", max_iterations=3, **numbers)
    with pytest.warns(UserWarning, match=r"by label/wrong_answer, and this run's loop\.best_metric is exact_match"):
        loop.fit()
    assert loop.best["metric"] == "exact_match"


def test_a_changed_number_of_tokens_is_applied(tmp_path: Path) -> None:
    first = tiny_module(update={"max_tokens": 4000})
    changed, same_setting = tiny_module(update={"max_tokens": 200}), tiny_module(update={"max_tokens": 4000})
    first.pass_size.lower(1000)
    for module in (changed, same_setting):
        module.load_progress_state(first.progress_state())
    assert changed.pass_size.tokens == 200
    assert same_setting.pass_size.tokens == 500


def test_other_versions_and_threads_are_named_in_one_line() -> None:
    here = environment()
    with pytest.warns(UserWarning, match=r"last bits .* torch 1\.0 -> .*, threads 99 -> \d+$"):
        warn_of_environment({**here, "torch": "1.0", "threads": "99"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_environment(here)
        warn_of_environment(None)
