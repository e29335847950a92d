"""A Lightning callback gets the hooks under `FabricLoop` that it gets under `lightning.Trainer`, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, LambdaCallback, ModelCheckpoint
from recording import LIGHTNINGS_HOOKS, OWN_HOOKS, SEED, StopAfter, recorder, under_fabric, under_trainer
from training_parts import same, tiny_data, tiny_loop, tiny_module, trainable

from ippo_lightning.errors import UserError
from ippo_lightning.modules import PPOModule
from ippo_lightning.run.lightning_hooks import HOOKS, check_callbacks, check_states

# Trainer calls it under automatic optimisation only; in these runs nothing writes files, or the loop does itself.
ONLY_FABRIC = ("on_before_zero_grad", "on_save_checkpoint", "state_dict")


def without(events: list[Any], names: tuple[str, ...] = ONLY_FABRIC) -> list[Any]:
    return [event for event in events if event[0] not in names]


@pytest.mark.parametrize(
    ("fabric", "trainer", "stops_after"),
    [
        pytest.param({}, {}, 99, id="two epochs"),
        pytest.param({"evaluate_first": True}, {"num_sanity_val_steps": -1}, 99, id="evaluation first"),
        pytest.param({}, {}, 6, id="stopped in an epoch"),
    ],
)
def test_hooks_come_in_the_order_and_with_the_arguments_of_trainer(
    fabric: dict[str, Any], trainer: dict[str, Any], stops_after: int, tmp_path: Path
) -> None:
    by_fabric, by_trainer = recorder(), recorder()
    first = under_fabric(tmp_path, [by_fabric, StopAfter(stops_after)], **fabric)
    second = under_trainer(tmp_path, [by_trainer, StopAfter(stops_after)], **trainer)
    assert same(trainable(first), trainable(second))
    assert without(by_fabric.events) == without(by_trainer.events)
    called = {event[0] for event in by_fabric.events}
    assert called >= {"setup", "on_train_batch_end", "on_validation_batch_end", "on_before_optimizer_step", "teardown"}


def test_each_optimizer_step_is_followed_by_the_hook_before_its_gradients_are_cleared(tmp_path: Path) -> None:
    class Gradients(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            groups = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
            found.append(any(gradient is not None and bool(gradient.any()) for gradient in groups))

    found: list[bool] = []
    module = under_fabric(tmp_path, [Gradients()], max_iterations=1, evaluate_every_n_iterations=0)
    assert found == [True] * module.optimizer_steps


def test_the_test_at_the_end_calls_the_hooks_of_a_test(tmp_path: Path) -> None:
    recorded = recorder()
    under_fabric(tmp_path, [recorded], max_iterations=1, evaluate_every_n_iterations=0, test_at_end=True)
    names = [event[0] for event in recorded.events]
    start = names.index("on_test_start")
    assert names[start - 1] == "on_train_end"
    batch = ["on_test_batch_start", "on_test_batch_end"]
    middle = ["on_test_start", "on_test_epoch_start", *batch, "on_test_epoch_end", "on_test_end"]
    assert names[start:] == [*middle, "on_fit_end", "teardown"]


def test_a_resumed_run_calls_the_hooks_of_a_resumed_trainer(tmp_path: Path) -> None:
    """In the middle of an epoch, so that the epoch does not begin twice."""
    under_fabric(tmp_path, [recorder(), StopAfter(2)], checkpoint_every_n_iterations=2)
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_train_steps=4)  # two steps per iteration
    under_trainer(tmp_path, [recorder(), StopAfter(2), keeper])
    by_fabric, by_trainer = recorder(), recorder()
    first = under_fabric(tmp_path, [by_fabric], resume=True)
    module = tiny_module()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[by_trainer],
    )
    trainer.fit(module, datamodule=tiny_data(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)

    def names(events: list[Any]) -> list[Any]:
        # Trainer saved before the evaluation of that iteration, makes up for it, and reads the epoch from its start.
        kept = [event for event in without(events) if not event[0].startswith(("on_val", "on_sanity"))]
        return [(event[0], event[-1]) if event[0] == "on_train_batch_start" else event[0] for event in kept]

    found = names(by_fabric.events)
    assert found == names(by_trainer.events)
    assert found[:4] == ["setup", "on_load_checkpoint", "load_state_dict", "on_fit_start"]
    assert found[5] == ("on_train_batch_start", 2)
    assert first.iteration == module.iteration == 8


def test_an_exception_is_told_and_stays_the_one_that_is_raised(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            raise RuntimeError("another one")

    def reward(prompts: Any, responses: Any, examples: Any) -> list[float]:
        raise KeyError("first")

    recorded = recorder()
    loop = tiny_loop(tmp_path / "run", tiny_module(reward=reward), callbacks=[recorded, Fails()])
    with pytest.warns(UserWarning, match="another one"), pytest.raises(UserError, match="KeyError: 'first'"):
        loop.fit()
    assert recorded.events[-1] == ("on_exception", "UserError")


# --- what is refused before the first iteration -------------------------------------------------------------


class PlainHooks:
    """No Lightning callback, and no `state_key`."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def on_rollout_start(self, trainer: Any, module: Any, plan: Any) -> None:
        self.called.append("on_rollout_start")

    def on_update_end(self, trainer: Any, module: Any, stats: Any) -> None:
        self.called.append("on_update_end")


def test_a_plain_object_with_hooks_of_this_project_works_and_resumes(tmp_path: Path) -> None:
    first, second = PlainHooks(), PlainHooks()
    under_fabric(tmp_path, [first], max_iterations=1)
    under_fabric(tmp_path, [second], max_iterations=2, resume=True)
    assert first.called == second.called == ["on_rollout_start", "on_update_end"]


def callback(**methods: Any) -> Any:
    return type("Own", (Callback,), methods)()


def plain(**methods: Any) -> Any:
    return type("Own", (), methods)()


def hook(self: Any, trainer: Any, pl_module: Any) -> None: ...


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: callback(on_predict_start=hook), r"Own overrides on_predict_start, which `ippo fit` never calls"),
        (lambda: callback(on_epoch_end=hook), r"Own overrides on_epoch_end, which `ippo fit` never calls"),
        (lambda: plain(on_rollout_begin=hook), r"Own overrides on_rollout_begin, which `ippo fit` never calls"),
        (lambda: plain(on_update_end=hook), r"Own\.on_update_end takes \(.*\); expected \(trainer, pl_module, stats\)"),
        (lambda: callback(on_train_batch_end=hook), r"Own\.on_train_batch_end takes .*outputs, batch, batch_idx\)"),
        (lambda: plain(state_dict=lambda self: {"a": 1}), r"Own has one of state_dict and load_state_dict"),
        (lambda: callback(state_dict=lambda self: {"a": Path("b")}), r"Own\.state_dict\(\) returned what a checkpoint"),
        (lambda: PlainHooks, r"PlainHooks is a class; expected an object"),
        (BackboneFinetuning, r"BackboneFinetuning changes during the run which parameters train"),
    ],
    ids=["predict", "removed", "misspelt", "own arguments", "arguments", "half a state", "state", "class", "freezing"],
)
def test_a_callback_whose_hook_cannot_be_called_is_refused_by_name(made: Any, said: str) -> None:
    def check(callbacks: list[Any]) -> None:
        check_callbacks(callbacks)
        check_states(callbacks)

    with pytest.raises(UserError, match=f"callbacks: {said}") as caught:
        check([made()])
    assert "\n" not in str(caught.value)


def test_a_run_that_a_callback_stops_before_it_trains_does_not_end_with_success(tmp_path: Path) -> None:
    class Stops(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = True

    with pytest.raises(UserError, match=r"set trainer\.should_stop before the first iteration"):
        under_fabric(tmp_path, [Stops()])


def test_an_error_of_a_hook_is_one_line_that_names_it(tmp_path: Path) -> None:
    class Divides(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            batch_idx // 0

    with pytest.raises(UserError, match=r"callbacks: Divides\.on_train_batch_end raised ZeroDivisionError"):
        under_fabric(tmp_path, [Divides()])


@pytest.mark.parametrize("name", ["on_rollout_start", "on_rollout_end", "on_update_end", "state_dict"])
def test_an_error_of_a_hook_of_this_project_or_of_a_state_is_one_line_too(name: str, tmp_path: Path) -> None:
    class Fails:
        is_broken = False

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.is_broken = batch_idx == 1

        def method(self, *_: Any) -> dict[str, Any]:
            return {} if not self.is_broken else {}["lost"]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    setattr(Fails, name, lambda self, *given: self.method(*given))
    with pytest.raises(UserError, match=rf"callbacks: Fails\.{name} raised KeyError: 'lost'"):
        under_fabric(tmp_path, [Fails()], checkpoint_every_n_iterations=1)


def test_an_error_of_load_state_dict_is_one_line_too(tmp_path: Path) -> None:
    class Forgets(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"a": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            state_dict["b"]

    under_fabric(tmp_path, [Forgets()], max_iterations=1)
    with pytest.raises(UserError, match=r"callbacks: Forgets\.load_state_dict raised KeyError: 'b'"):
        under_fabric(tmp_path, [Forgets()], max_iterations=2, resume=True)


def test_a_new_hook_of_lightning_that_the_loop_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Callback, "on_new_moon", hook, raising=False)
    check_callbacks([callback(on_train_end=hook)])
    with pytest.raises(UserError, match="overrides on_new_moon, which"):
        check_callbacks([callback(on_train_end=hook, on_new_moon=lambda self, *given: None)])


def test_a_method_that_only_looks_like_a_hook_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"Own\.on_epoch_end is no hook of this loop"):
        check_callbacks([callback(on_train_end=hook, on_epoch_end=hook)])


def test_hooks_in_the_object_count_as_those_of_a_class(tmp_path: Path) -> None:
    called: list[int] = []
    own = LambdaCallback(on_train_batch_end=lambda trainer, module, outputs, batch, index: called.append(index))
    under_fabric(tmp_path, [own], max_iterations=2, evaluate_every_n_iterations=0)
    assert called == [0, 1]


def test_every_hook_of_lightnings_base_class_is_called_or_belongs_to_predict() -> None:
    others = {"state_dict", "load_state_dict"}
    never = set(LIGHTNINGS_HOOKS) - set(HOOKS) - others
    assert all("predict" in name for name in never)
    assert set(OWN_HOOKS) <= set(HOOKS)


def test_the_page_of_the_callbacks_has_a_row_for_each_hook(repository: Path) -> None:
    rows = [
        line.split("`")[1]
        for line in (repository / "docs" / "guides" / "callbacks.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    given = {name: ", ".join(("trainer", "pl_module", *arguments)) for name, arguments in HOOKS.items()}
    assert rows == [f"{name}({arguments})" for name, arguments in given.items()]


# --- hooks of the module itself -----------------------------------------------------------------------------


def test_hooks_of_a_users_module_are_called_after_those_of_the_callbacks(tmp_path: Path) -> None:
    class Own(PPOModule):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            called.append(("setup", stage))

        def on_train_start(self) -> None:
            super().on_train_start()  # under Trainer it begins the random stream, which a loop has begun already
            called.append(("on_train_start",))

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            called.append(("module", batch_idx))

        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()  # under Trainer it logs the metrics and clears them
            called.append(("on_validation_epoch_end",))

    class Told(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            called.append(("callback", batch_idx))

    called: list[Any] = []
    plain_module = tiny_module()
    changes = {"max_iterations": 1, "evaluate_every_n_iterations": 1}
    expected = under_fabric(tmp_path / "plain", [], **changes)
    module = Own(
        policy=tiny_module().policy,
        reward=plain_module.reward,
        grader=plain_module.grader,
        sampling=plain_module.sampling,
        optimizer=plain_module.optimizer_settings,
        update=plain_module.update_settings,
    )
    settings = {"evaluate_every_n_iterations": 1, "max_iterations": 1, "seed": SEED}
    tiny_loop(tmp_path / "own", module, callbacks=[Told()], **settings).fit()
    assert called == [
        ("setup", "fit"),
        ("on_train_start",),
        ("callback", 0),
        ("module", 0),
        ("on_validation_epoch_end",),
    ]
    assert same(trainable(module), trainable(expected))
    assert (tmp_path / "own" / "evaluations.jsonl").read_text() == (
        tmp_path / "plain" / "fabric" / "evaluations.jsonl"
    ).read_text()
