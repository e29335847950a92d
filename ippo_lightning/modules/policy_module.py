"""What SFT and PPO share: a policy, its optimizer, evaluation by a grader, and the ties to Trainer or Fabric."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.distributed.lockstep import in_step
from ippo_lightning.engine import random_states, restore_random_states, seed_training
from ippo_lightning.errors import UserError
from ippo_lightning.metrics import ReasoningMetrics
from ippo_lightning.modules.backends import Backend, FabricBackend, TrainerBackend
from ippo_lightning.modules.memory import memory_of
from ippo_lightning.modules.optimization import OptimizerSettings, build_optimizer, learning_rate_factor
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, SamplingSettings, encode_demonstrations
from ippo_lightning.policies.sharding import shard_policy
from ippo_lightning.rollouts import sample_responses
from ippo_lightning.tasks import Grade

Grader = Callable[[str, str, Mapping[str, Any]], Grade]


class PolicyModule(LightningModule):
    """A policy under training. One `training_step` is one iteration under manual optimisation.

    Args:
        policy: the language model with its tokenizer.
        grader: labels a response for the metrics; null for no evaluation.
        evaluation: how responses are sampled for evaluation; `num_responses` is the k of pass@k and the vote.
        optimizer: AdamW and its schedule.
        evaluation_seed: evaluation samples from its own random stream and leaves training's alone.
    """

    loss_method: ClassVar[str]
    """Name of the method whose loss goes through the strategy's wrapper."""

    def __init__(
        self,
        *,
        policy: CausalLMPolicy,
        grader: Grader | None = None,
        evaluation: SamplingSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        evaluation_seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.grader = grader
        self.evaluation = evaluation or SamplingSettings()
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.evaluation_seed = evaluation_seed
        self.evaluation_metrics = ReasoningMetrics(k=self.evaluation.num_responses)
        self.iteration = 0
        self.episodes_seen = 0
        self.optimizer_steps = 0
        self.tokens_trained = 0
        self._random_states: Any = None

    # --- who drives the module -------------------------------------------------------------------

    def attach(self, loop: object, *, wrapper: Any = None) -> None:
        """Tie the module to a loop other than `lightning.Trainer`.

        Args:
            loop: has `callbacks`, `should_stop`, `max_iterations`, as a `FabricLoop` does.
            wrapper: what `Fabric.setup` returned; losses are computed through it, so that DDP sees them.
        """
        # past nn.Module's own bookkeeping: the wrapper holds this module and would become its child
        self.__dict__["_backend"] = FabricBackend(self, loop, wrapper)

    def setup(self, stage: str) -> None:
        """Leave a loop that `attach` tied the module to: from here on `lightning.Trainer` runs it.

        Raises:
            UserError: a strategy that sampling and scoring cannot work with.
        """
        self.__dict__["_backend"] = None
        self._fabric = None
        TrainerBackend(self).require_supported_strategy()

    @property
    def backend(self) -> Backend:
        """The adapter to the `FabricLoop` or `lightning.Trainer` that runs the module."""
        attached: Backend | None = self.__dict__.get("_backend")
        return attached if attached is not None else TrainerBackend(self)

    def configure_model(self) -> None:
        """Divide the policy where `lightning.Trainer` runs its `ModelParallelStrategy` (FSDP2).

        Raises:
            UserError: the mesh has a tensor-parallel dimension, which the policy does not know.
        """
        mesh = self.device_mesh
        if mesh is None or is_sharded(self):
            return
        tensor_parallel = mesh["tensor_parallel"].size()
        if tensor_parallel > 1:
            raise UserError(
                f"Trainer.strategy: tensor_parallel_size {tensor_parallel} is not supported; set it to 1, and "
                "data_parallel_size to the number of ranks"
            )
        shard_policy(self.policy, mesh["data_parallel"])

    # --- optimisation ----------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the trainable parameters."""
        return build_optimizer(self, self.optimizer_settings)

    def schedule_learning_rate(self) -> float:
        """Set the learning rate of this iteration in every parameter group; return its factor of the peak."""
        factor = learning_rate_factor(
            self.optimizer_settings, iteration=self.iteration, total=self.backend.total_iterations
        )
        for group in self.only_optimizer().param_groups:
            group["lr"] = group["initial_lr"] * factor
        return factor

    def only_optimizer(self) -> Any:
        """The one optimizer, as Trainer or Fabric wrapped it."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list), "configure_optimizers returns one optimizer"
        return optimizer

    def backward_loss(self, loss: Tensor) -> None:
        """Add to the gradients, through the precision plugin and the strategy."""
        self.manual_backward(loss)

    def no_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Leave gradients unaveraged over ranks while more of the same step is to come."""
        return self.backend.no_sync() if enabled else nullcontext()

    def in_step(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """Yield the parts, and where forwards are collectives (FSDP2), the last with False until every rank is done."""
        return in_step(parts, module=self)

    def clip_and_step(self, max_grad_norm: float | None) -> float:
        """Clip the gradient, take one optimizer step, clear the gradient.

        Args:
            max_grad_norm: the gradient is scaled down to this norm; null for no clipping.

        Returns:
            The gradient's norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite; no step was taken.
        """
        optimizer = self.only_optimizer()
        norm = self.backend.clip_gradients(optimizer, max_norm=math.inf if max_grad_norm is None else max_grad_norm)
        if norm is not None and not bool(torch.isfinite(norm)) and not self._scaler_can_help():
            optimizer.zero_grad()
            raise FloatingPointError(f"update: the gradient norm is {float(norm)}; try a lower learning rate or fp32")
        optimizer.step()
        optimizer.zero_grad()
        return float(norm) if norm is not None else math.nan

    def _scaler_can_help(self) -> bool:
        """Whether a gradient scaler will skip the step and try again with smaller numbers; below 1 it has given up."""
        return self.backend.scaler is not None and float(self.backend.scaler.get_scale()) >= 1.0

    def call_through_wrapper(self, method: str, *arguments: Any) -> Any:
        """Call one of this module's methods so that a strategy's wrapper (DDP) takes part in the forward."""
        return self.backend.call(method, *arguments)

    # --- demonstrations --------------------------------------------------------------------------

    def encode_demonstrations(self, batch: Mapping[str, Any]) -> EncodedResponses:
        """Return the batch's prompts and responses as ids on the policy's device, EOS appended."""
        encoded = encode_demonstrations(
            self.policy.tokenizer, batch["prompts"], batch["responses"], max_length=self.policy.context_length
        )
        return EncodedResponses(*(tensor.to(self.policy.device) for tensor in encoded))

    # --- evaluation ------------------------------------------------------------------------------

    def sample(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return `evaluation.num_responses` texts for each prompt of the batch."""
        return sample_responses(self.policy, prompts=batch["prompts"], sampling=self.evaluation)

    def evaluate_batch(self, batch: Mapping[str, Any], batch_index: int) -> None:
        """Sample, grader, and add the grades to `evaluation_metrics`."""
        if self.grader is None:
            raise UserError("model.grader: null; evaluation needs a grader, for example grade_arithmetic")
        with self._evaluation_stream(batch_index):
            responses = self.sample(batch)
        grades = [
            [self.grader(prompt, response, example) for response in group]
            for prompt, group, example in zip(batch["prompts"], responses, batch["examples"], strict=True)
        ]
        self.evaluation_metrics.update(grades, references=_references(batch["examples"]))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Evaluate one batch of prompts."""
        self.evaluate_batch(batch, batch_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Evaluate one batch of prompts."""
        self.evaluate_batch(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation set (under `lightning.Trainer`)."""
        self._log_evaluation("validation")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set (under `lightning.Trainer`)."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        self.log_dict({f"{_SPLITS[split]}/{name}": value for name, value in self.evaluation_metrics.compute().items()})
        self.evaluation_metrics.reset()

    @contextmanager
    def _evaluation_stream(self, batch_index: int) -> Iterator[None]:
        with isolate_rng():
            torch.manual_seed(self.evaluation_seed + 7919 * batch_index + 104729 * rank())
            yield

    # --- counting and remembering -----------------------------------------------------------------

    def finish_iteration(
        self, metrics: Mapping[str, float], *, episodes: int, optimizer_steps: int, tokens: int
    ) -> dict[str, float]:
        """Count an iteration, log it, and return all its numbers.

        Args:
            metrics: of this iteration.
            episodes: sampled (or demonstrations read) in this iteration, on all ranks.
            optimizer_steps: taken in this iteration.
            tokens: response tokens that took part in an optimizer step, each epoch counted, on all ranks.
        """
        iteration = self.iteration
        self.iteration += 1
        self.episodes_seen += episodes
        self.optimizer_steps += optimizer_steps
        self.tokens_trained += tokens
        numbers = {
            **metrics,
            **memory_of(self, self.only_optimizer()),
            "progress/iterations": self.iteration,
            "progress/episodes": self.episodes_seen,
            "progress/optimizer_steps": self.optimizer_steps,
            "progress/tokens_trained": self.tokens_trained,
        }
        self.backend.log(numbers, iteration=iteration)
        return numbers

    def progress_state(self) -> dict[str, Any]:
        """Return counters and controllers as plain numbers, for a checkpoint."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `progress_state` returned."""
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))

    def on_train_start(self) -> None:
        """Begin the random stream of this rank, or go on with that of the checkpoint (under `lightning.Trainer`)."""
        if self._random_states is not None:
            restore_random_states(self._random_states, source="ckpt_path")
            self._random_states = None
        else:
            seed_training(int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, controllers and random streams to a checkpoint of `lightning.Trainer`."""
        checkpoint[_CHECKPOINT_KEY] = {"progress": self.progress_state(), "random": random_states()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` added."""
        saved = checkpoint[_CHECKPOINT_KEY]
        self.load_progress_state(saved["progress"])
        self._random_states = saved["random"]


_CHECKPOINT_KEY = "ippo_lightning"
_COUNTERS = ("iteration", "episodes_seen", "optimizer_steps", "tokens_trained")
_SPLITS = {"validation": "eval", "test": "test"}


def _references(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(example["answer"]) for example in examples]
