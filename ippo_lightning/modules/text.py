"""What SFT and PPO of language models share: a policy, and its evaluation by a grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ippo_lightning.data import Splits
from ippo_lightning.distributed.collectives import rank
from ippo_lightning.distributed.dtensor import is_sharded
from ippo_lightning.errors import UserError
from ippo_lightning.maths import masked_row_mean
from ippo_lightning.metrics import ReasoningMetrics, RewardMetrics, reference_answers
from ippo_lightning.metrics.rewards import REWARD
from ippo_lightning.modules.evaluated import EvaluatedModule
from ippo_lightning.modules.measured_reward import measured_reward
from ippo_lightning.modules.optimization import OptimizerSettings
from ippo_lightning.modules.row_checks import ResponseRoom, check_rows_fit
from ippo_lightning.modules.standard_parts import TEXT_PARTS
from ippo_lightning.policies import CausalLMPolicy, EncodedResponses, SamplingSettings
from ippo_lightning.policies.sharding import shard_policy
from ippo_lightning.records import Batch
from ippo_lightning.rewards import HeldGrader, HeldReward
from ippo_lightning.rollouts import SampledResponses, sample_responses
from ippo_lightning.tasks import Grader, Row


class TextModule(EvaluatedModule):
    """A language model under training.

    Args:
        policy: the language model with its tokenizer.
        grader: called with a prompt, a response and its example; its grades make the metrics. None for that of the
            data module's task.
        evaluation: how responses are sampled for evaluation; `num_responses` is the k of pass@k and of the vote.
        optimizer: AdamW and its schedule.
        evaluation_seed: evaluation samples from a random stream of its own and does not touch that of training.
    """

    standard_parts = TEXT_PARTS
    sampling: SamplingSettings | None = None
    """How episodes are sampled for training; None if a module trains on demonstrations."""
    _reward: HeldReward | None = None
    _training_rows: int | None = None
    """Episodes of a batch of training on this rank; None if it is not known."""

    def __init__(
        self,
        *,
        policy: CausalLMPolicy,
        grader: Grader | None = None,
        evaluation: SamplingSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        evaluation_seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.policy = policy
        self._grader: HeldGrader | None = None
        self.grader = grader
        self.evaluation = evaluation or SamplingSettings()
        self.evaluation_seed = evaluation_seed
        self.evaluation_metrics: ReasoningMetrics | RewardMetrics = ReasoningMetrics(k=self.evaluation.num_responses)

    @property
    def grader(self) -> HeldGrader | None:
        """The grader: the one given, else that of the data module's task; None without either."""
        return self._grader

    @grader.setter
    def grader(self, grader: Grader | None) -> None:
        # held by a plain object: a grader that is an nn.Module must not become a part of this one
        self._grader = grader if grader is None or isinstance(grader, HeldGrader) else HeldGrader(grader)

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        """Set an attribute; a reward or grader that is an `nn.Module` goes to its property, not to the children."""
        # torch's own __setattr__ registers a module before it looks for a property.
        if isinstance(getattr(type(self), name, None), property) and isinstance(value, nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def use_data(self, datamodule: object) -> None:
        """Take the grader from the data module's task if none was given, and try grader and rows.

        Args:
            datamodule: after its `setup`; any object, or None.

        Raises:
            UserError: the grader raised, or returned something that is no grade; or a row does not fit the model.
        """
        prompts = getattr(datamodule, "batch_size", None)  # that of another library may have none, or another thing
        if self.sampling is not None and isinstance(prompts, int):
            self._training_rows = max(prompts, 1) * self.sampling.num_responses
        task = getattr(datamodule, "task", None)
        grade = getattr(task, "grade", None)
        if self._grader is None and callable(grade) and getattr(task, "can_grade", True):
            self._grader = HeldGrader(grade)
        # Tried at once: a grader that raises would otherwise end the run at its first evaluation.
        if self._grader is not None:
            self._grader.check(_sample_rows(datamodule))
        elif self.evaluation_reward is not None:
            self.evaluation_metrics = RewardMetrics()
        # All rows, so that one that is too long does not end the run at the iteration that meets it.
        check_rows_fit(self.policy, datamodule, self.row_uses())

    def row_uses(self) -> dict[str, ResponseRoom | None]:
        """Return how the module reads the splits of its data; see `check_rows_fit`."""
        room = ResponseRoom(tokens=self.evaluation.max_new_tokens, setting="evaluation.max_new_tokens")
        read: dict[str, ResponseRoom | None] = {}
        # A run that never evaluates may leave no room for a prompt there; an evaluation reports that by itself.
        if room.tokens < self.policy.context_length:
            read = {"validation": room, "test": room}
        if self.sampling is None:
            return {"demonstrations": None, **read}
        room = ResponseRoom(tokens=self.sampling.max_new_tokens, setting="sampling.max_new_tokens")
        return {"prompts": room, "influence": None, **read}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the policy's and the critic's trainable parameters; other modules of a subclass do not train."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad and name.startswith("policy.")}

    def configure_model(self) -> None:
        """Shard the policy if `lightning.Trainer` runs its `ModelParallelStrategy` (FSDP2).

        Raises:
            UserError: the mesh has a tensor-parallel dimension, which the policy does not support.
        """
        # Lightning calls this once for each of fit, validate and test; a second sharding would nest the first.
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

    # --- demonstrations ---------------------------------------------------------------------------

    def encode_demonstrations(self, batch: Batch) -> EncodedResponses:
        """Return the batch's prompts and responses as ids on the policy's device, with EOS appended.

        Args:
            batch: `prompts` and `responses`, one text each per row.

        Raises:
            UserError: the batch has another form; a YAML may give the filter's demonstrations as anything.
        """
        if not isinstance(batch, Mapping) or not {"prompts", "responses"} <= batch.keys():
            found = f"the keys {list(batch)}"[:80] if isinstance(batch, Mapping) else type(batch).__name__
            raise UserError(f"demonstrations: a batch has {found}; expected prompts and responses, lists of texts")
        encoded = self.policy.text.encode_demonstrations(
            batch["prompts"], batch["responses"], max_length=self.policy.context_length
        )
        return EncodedResponses(*(tensor.to(self.policy.device) for tensor in encoded))

    def demonstration_costs(self, batch: Batch) -> Tensor:
        """Return the tokens of each demonstration, prompt and response, shape [rows], int64.

        Args:
            batch: see `encode_demonstrations`.
        """
        encoded = self.encode_demonstrations(batch)
        return encoded.prompt_mask.sum(dim=1) + encoded.response_mask.sum(dim=1)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return the SFT loss of demonstrations in nats: mean over tokens, then over demonstrations, shape []."""
        encoded = self.encode_demonstrations(batch)
        output = self.policy(*encoded)
        return -masked_row_mean(values=output.log_probs, mask=encoded.response_mask).mean()

    # --- evaluation ------------------------------------------------------------------------------

    def sample(self, batch: Batch) -> SampledResponses:
        """Return `evaluation.num_responses` responses to each prompt of the batch."""
        return sample_responses(self.policy, prompts=batch["prompts"], sampling=self.evaluation)

    def evaluate_batch(self, batch: Batch, batch_index: int) -> None:
        """Sample, grade, and add grades and rewards to `evaluation_metrics`; without a grader, rewards alone.

        Args:
            batch: `prompts` and `examples`.
            batch_index: of the batch in its split; it chooses the random stream, so that an evaluation can be repeated.

        Raises:
            UserError: there is neither a grader nor a reward.
        """
        if self.grader is None and self.evaluation_reward is None:
            raise UserError(_NO_GRADER)
        with self.evaluation_stream(batch_index, of_rank=rank()):
            sampled = self.sample(batch)
            rewards = self.reward_responses(batch, sampled)
        if self.grader is None:
            self._add_rewards(rewards, sampled)
            return
        grades = self.grader.grade_groups(batch["prompts"], sampled.texts, batch["examples"])
        assert isinstance(self.evaluation_metrics, ReasoningMetrics), "use_data chooses the metrics by the grader"
        references = reference_answers(batch["examples"])
        self.evaluation_metrics.update(
            grades, references, lengths=sampled.lengths, truncated=sampled.truncated, rewards=rewards
        )

    def num_evaluated(self, batch: Batch) -> int:
        """Return the number of prompts of a batch."""
        return len(batch["prompts"])

    def describe_evaluation(self) -> dict[str, Any]:
        """Return the number of responses to each prompt."""
        return {"k": self.evaluation.num_responses, "samples_per_prompt": self.evaluation.num_responses}

    @property
    def reference_kind(self) -> str:
        """The kind of the policy's reference."""
        return self.policy.reference_kind

    def save_model(self, folder: Path) -> None:
        """Write the policy for plain transformers.

        Args:
            folder: exists.
        """
        self.policy.save_pretrained(folder)

    @property
    def evaluation_reward(self) -> HeldReward | None:
        """The reward that training maximises; None if none was given."""
        return self._reward

    @property
    def measures_reward(self) -> bool:
        """Whether an evaluation calls the reward: if there is no grader, or if it tells more than the exact match."""
        reward = self.evaluation_reward
        return reward is not None and (self.grader is None or reward.is_measured(self.grader))

    @property
    def reward_is_grade(self) -> bool:
        """Whether the reward is 1.0 for a right response by the grader, and 0.0 for a wrong one."""
        reward, grader = self.evaluation_reward, self.grader
        return reward is not None and grader is not None and reward.is_grade_of(grader)

    def reward_responses(self, batch: Batch, sampled: SampledResponses) -> dict[str, Tensor]:
        """Return the reward of each response of an evaluation and its named parts, shape [prompts * samples] each.

        Args:
            batch: `prompts` and `examples`.
            sampled: responses to them.

        Returns:
            By name, see `ippo_lightning.metrics.named_rewards`; empty if an evaluation does not call the reward.

        Raises:
            MeasuredRewardError: see `ippo_lightning.rewards.call_reward`.
        """
        reward = self.evaluation_reward
        if reward is None or not self.measures_reward:
            return {}
        triples = zip(batch["prompts"], sampled.texts, batch["examples"], strict=True)
        rows = [(prompt, text, example) for prompt, group, example in triples for text in group]
        return measured_reward(reward, rows, most_rows=self._training_rows, grader=self.grader)

    def _add_rewards(self, rewards: dict[str, Tensor], sampled: SampledResponses) -> None:
        if not isinstance(self.evaluation_metrics, RewardMetrics):  # a module without `use_data`
            self.evaluation_metrics = RewardMetrics()
        total = rewards[REWARD]
        parts = {name.removeprefix(f"{REWARD}/"): values for name, values in rewards.items() if name != REWARD}
        self.evaluation_metrics.update(total, parts=parts, lengths=sampled.lengths, truncated=sampled.truncated)

    def check_evaluation(self) -> None:
        """Refuse an evaluation that would otherwise end a run after its last iteration.

        Raises:
            UserError: there is neither grader nor reward, or no grader and a reward that needs a rollout. A subclass
                that evaluates in its own way may need none.
        """
        names = ("evaluate_batch", "validation_step", "test_step")
        is_own_way = any(getattr(type(self), name) is not getattr(TextModule, name) for name in names)
        if self.grader is not None or is_own_way:
            return
        reward = self.evaluation_reward
        if reward is None or reward.needs_rollout:
            problem = _NO_GRADER if reward is None else f"{_NO_GRADER}, and the reward counts tokens of a rollout"
            raise UserError(
                f"{problem}; give one, or set loop.evaluate_first and loop.test_at_end to false and "
                "loop.evaluate_every_n_iterations to 0"
            )


_NO_GRADER = "model.grader: null, and the data has no task with a grade; evaluation needs a grader or a reward"


def _sample_rows(datamodule: object) -> Sequence[Row]:
    """Return rows to try a grader on, demonstrations if there are some; none from a foreign data module."""
    splits = getattr(datamodule, "splits", None)
    if not isinstance(splits, Splits):
        return ()
    # Demonstrations first: they have responses, so the grader is tried on real ones.
    return next((rows for rows in (splits.demonstrations, splits.validation, splits.prompts) if len(rows)), ())
