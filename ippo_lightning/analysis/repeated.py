"""A run's module at the beginning of a kept iteration: to score its rows again, and to train on them again."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ippo_lightning.engine.random_streams import RandomStates, continue_own_streams
from ippo_lightning.engine.settings import UpdateSettings
from ippo_lightning.engine.update import UpdateOutcome, run_update
from ippo_lightning.errors import UserError
from ippo_lightning.modules.policy_iterations import PolicyIterations
from ippo_lightning.records import UpdatePlan
from ippo_lightning.records.kept_rounds import KeptRound
from ippo_lightning.run.checkpoints import load_parameters
from ippo_lightning.run.fabric_loop import FabricLoop
from ippo_lightning.run.round_setup import set_up_rounds


class RepeatedRounds:
    """Puts a module back to the beginning of kept iterations, in one process.

    The update with the weights of the run gives, in one process as in the run, the parameters of the run bit for bit;
    rows of several ranks are drawn into other minibatches of the same size.

    Args:
        loop: of the run's configuration, without callbacks and loggers; it has not begun anything.
        round_: any kept iteration of the run, which tells what trained.

    Raises:
        UserError: the module is no module of iterations, or the run had another model.
    """

    def __init__(self, loop: FabricLoop, round_: KeptRound) -> None:
        if not isinstance(loop.module, PolicyIterations):
            raise UserError(
                f"run: {type(loop.module).__name__} has no rollouts; expected a PPOModule or ControlPPOModule"
            )
        self.loop = loop
        self.module: Any = loop.module
        unknown = sorted(round_.parameters.keys() - dict(loop.module.named_parameters()).keys())
        if unknown:
            raise UserError(f"buffer: it is of another model; the run's configuration builds none with {unknown[0]}")
        set_up_rounds(loop, round_.parameters)
        if round_.fingerprint and round_.fingerprint != loop.fingerprint:
            raise UserError("buffer: it is of another model; its frozen parameters are not those of the run's")

    def begin(self, round_: KeptRound) -> KeptRound:
        """Load parameters, optimizer and counters of before the update; return the round on the module's device.

        Args:
            round_: of the run.

        Raises:
            UserError: it is of another model.
        """
        module = self.module
        load_parameters(module, round_.parameters, source=Path(f"iteration {round_.iteration}"))
        try:
            # A copy: an optimizer takes over the tensors of a state, and changes them in its steps.
            module.only_optimizer().load_state_dict(copy.deepcopy(dict(round_.optimizer)))
            if module.backend.scaler is not None and round_.scaler:
                module.backend.scaler.load_state_dict(dict(round_.scaler))
            module.load_progress_state(round_.progress)
            module.schedule_learning_rate()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _unusable(round_, "optimizer or counters", error) from error
        module.clear_gradients()
        on_device = round_.on(self.loop.fabric.device)
        module.use_rows(on_device.episodes)
        return on_device

    def train(self, round_: KeptRound, weights: Tensor | None = None, *, seed: int | None = None) -> UpdateOutcome:
        """Repeat the update of a round from its beginning, with the weights of the run or others.

        Args:
            round_: of the run.
            weights: shape [rows], float, >= 0, of the policy losses; None for those of the run.
            seed: of the order of minibatches; None for the order of the run.
        """
        on_device = self.begin(round_)
        return self.update(on_device, on_device.plan(weights), stages=self.module, seed=seed)

    def update(self, round_: KeptRound, plan: UpdatePlan, *, stages: Any, seed: int | None = None) -> UpdateOutcome:
        """Train on a plan from the current parameters, with the random streams of the round.

        Args:
            round_: of the run, after `begin`.
            plan: of its rows; sealed here.
            stages: the module, or what stands in for it, such as `RoundScores`.
            seed: of the order of minibatches; None for the order of the run.
        """
        plan.sealed = True
        with isolate_rng(), self.loop.fabric.autocast():
            try:
                continue_own_streams(cast(RandomStates, round_.random))
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise _unusable(round_, "random streams", error) from error
            if seed is not None:
                torch.manual_seed(seed)
            return run_update(stages, plan, self._settings(round_))

    def _settings(self, round_: KeptRound) -> UpdateSettings:
        settings: UpdateSettings = self.module.update_settings
        # A minibatch of the run had so many rows on each rank.
        sizes = {name: getattr(settings, name) * round_.num_ranks for name in ("minibatch_size", "micro_batch_size")}
        return replace(settings, **sizes)


def _unusable(round_: KeptRound, what: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return UserError(f"buffer: iteration {round_.iteration} has no usable {what} ({reason})")
