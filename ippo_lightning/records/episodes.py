"""The records that pass between the rooms: episodes, the plan of an update, and what the update did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ippo_lightning.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """What the policy did in one rollout: prompts, responses, and every number PPO needs about them.

    Axes: ``episodes`` is the first axis of every field, ``prompt_tokens`` are padded on the left, ``tokens`` (of the
    response) on the right. A field that a later stage fills is NaN until then, so that using it too early is loud.

    Example:
        Prompt ``7+12?`` answered ``7+12=19;#19<eos>``: ``prompt_ids`` holds 5 tokens, ``response_ids`` 11 tokens, EOS
        included, all with ``response_mask`` True; ``outcome_rewards`` is 1.0 and ``rewards`` is zero but for the KL
        penalty, with the 1.0 added at the EOS token.
    """

    prompt_ids: Tensor
    """[rows, prompt_tokens] int64, padded on the left."""
    prompt_mask: Tensor
    """[rows, prompt_tokens] bool, True on real tokens."""
    response_ids: Tensor
    """[rows, steps] int64, the very ids that were sampled, padded on the right."""
    response_mask: Tensor
    """[rows, steps] bool, True on response tokens, EOS included."""
    truncated: Tensor
    """[rows] bool, True where the length limit cut the response before a stop token."""
    group: Tensor
    """[rows] int64, equal for the responses to one prompt."""
    log_probs: Tensor
    """[rows, steps] nats, of the sampling policy at the sampling temperature; 0.0 off the mask."""
    ref_log_probs: Tensor
    """[rows, steps] nats, of the frozen reference; 0.0 off the mask."""
    values: Tensor
    """[rows, steps] the critic's estimate before each token; 0.0 off the mask."""
    outcome_rewards: Tensor
    """[rows] the number of the grader or reward model."""
    rewards: Tensor
    """[rows, steps] outcome on the last response token, KL penalty on every token; 0.0 off the mask."""
    advantages: Tensor
    """[rows, steps] 0.0 off the mask."""
    returns: Tensor
    """[rows, steps] regression targets of the critic; 0.0 off the mask."""
    prompts: tuple[str, ...]
    """The prompts as text, one an episode."""
    responses: tuple[str, ...]
    """The responses decoded for rewards and reports; never encoded again."""
    examples: tuple[Mapping[str, Any], ...]
    """What the data module knows about each prompt (the answer, for instance)."""

    def __post_init__(self) -> None:
        for name in _PER_EPISODE + _PER_TOKEN:
            tensor = getattr(self, name)
            expected = self.response_ids.shape[: 1 if name in _PER_EPISODE else 2]
            if tensor.shape != expected:
                raise ValueError(f"Episodes.{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")
        if self.prompt_ids.shape != self.prompt_mask.shape or len(self.prompt_ids) != len(self):
            raise ValueError(
                f"Episodes.prompt_mask has shape {tuple(self.prompt_mask.shape)}, "
                f"prompt_ids {tuple(self.prompt_ids.shape)}, for {len(self)} episodes"
            )
        for name in _TEXTS:
            if len(getattr(self, name)) != len(self):
                raise ValueError(f"Episodes.{name} has {len(getattr(self, name))} entries for {len(self)} episodes")

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.response_ids.device

    @property
    def total_lengths(self) -> Tensor:
        """[rows] int64, prompt and response tokens of each episode."""
        return self.lengths + self.prompt_mask.sum(dim=1)

    @property
    def num_tokens(self) -> int:
        """Response tokens in all episodes, padding not counted."""
        return int(self.response_mask.sum())

    @property
    def lengths(self) -> Tensor:
        """[rows] int64, response tokens of each episode."""
        return self.response_mask.sum(dim=1)

    def evolve(self, **changes: Any) -> Episodes:
        """Return a copy with some fields replaced; the record itself never changes."""
        return replace(self, **changes)

    def select(self, index: Tensor | Sequence[int]) -> Episodes:
        """Return the episodes at `index`, every field cut alike and padding columns that nobody needs left out.

        Args:
            index: positions of the episodes, shape [chosen], int64; may be empty, may repeat.

        Raises:
            UserError: a mask in place of positions, which would silently pick the first two episodes again and again.
        """
        index = torch.as_tensor(index, device=self.response_ids.device)
        if index.dtype == torch.bool:
            raise UserError(f"episodes.select: index is a mask {list(index.shape)}; expected positions")
        index = index.long()
        chosen: dict[str, Any] = {name: getattr(self, name)[index] for name in EPISODE_TENSORS}
        rows = index.tolist()
        chosen |= {name: tuple(getattr(self, name)[row] for row in rows) for name in _TEXTS}
        return Episodes(**chosen).trimmed()

    def trimmed(self) -> Episodes:
        """Return the same episodes without columns that are padding in every episode (at least one column stays)."""
        response_columns = max(int(self.lengths.max()), 1) if len(self) else 1
        prompt_columns = max(int(self.prompt_mask.sum(dim=1).max()), 1) if len(self) else 1
        cut = {name: getattr(self, name)[:, :response_columns] for name in _PER_TOKEN}
        return self.evolve(
            prompt_ids=self.prompt_ids[:, -prompt_columns:], prompt_mask=self.prompt_mask[:, -prompt_columns:], **cut
        )

    def to(self, device: torch.device | str) -> Episodes:
        """Return a copy whose tensors lie on `device`."""
        return self.evolve(**{name: getattr(self, name).to(device) for name in EPISODE_TENSORS})


_PER_EPISODE = ("truncated", "group", "outcome_rewards")
_PER_TOKEN = (
    "response_ids",
    "response_mask",
    "log_probs",
    "ref_log_probs",
    "values",
    "rewards",
    "advantages",
    "returns",
)
_TEXTS = ("prompts", "responses", "examples")
EPISODE_TENSORS = ("prompt_ids", "prompt_mask", *_PER_EPISODE, *_PER_TOKEN)
"""Names of the fields of `Episodes` that are tensors."""


def concat_episodes(parts: Sequence[Episodes], *, pad_token_id: int) -> Episodes:
    """Join several records into one, padding prompts on the left and responses on the right to common widths.

    Args:
        parts: at least one record.
        pad_token_id: id written into the padding of `prompt_ids` and `response_ids`.
    """
    prompt_columns = max(part.prompt_ids.shape[1] for part in parts)
    response_columns = max(part.response_ids.shape[1] for part in parts)

    def widened(part: Episodes, name: str) -> Tensor:
        tensor: Tensor = getattr(part, name)
        if name in _PER_EPISODE:
            return tensor
        fill = pad_token_id if name.endswith("_ids") else 0
        left = prompt_columns - tensor.shape[1] if name.startswith("prompt") else 0
        right = 0 if name.startswith("prompt") else response_columns - tensor.shape[1]
        return torch.nn.functional.pad(tensor, (left, right), value=fill)

    joined: dict[str, Any] = {name: torch.cat([widened(part, name) for part in parts]) for name in EPISODE_TENSORS}
    joined |= {name: tuple(text for part in parts for text in getattr(part, name)) for name in _TEXTS}
    return Episodes(**joined)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reweighting:
    """One change of a plan: who made it, and what it did."""

    reason: str
    """Name of the rule, as a log shows it."""
    weights: Tensor
    """[rows] the weights it set."""
    scores: Tensor | None = None
    """[rows] the scores behind it, where there are any."""


@dataclass(slots=True, kw_only=True)
class UpdatePlan:
    """What the update is about to do with each episode: the one record that a callback may change.

    A callback calls `reweight`; the engine seals the plan, decides together with all ranks what happens when nothing
    is left, and updates.
    """

    episodes: Episodes
    """What was collected; never changed."""
    weights: Tensor = field(init=False)
    """[rows] float32, >= 0; zero drops the episode's policy loss, one leaves it as it is."""
    history: list[Reweighting] = field(default_factory=list)
    """Every change, oldest first."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers that callbacks wish to see in the log of this iteration; they change nothing."""
    sealed: bool = False
    """True once the engine has begun the update."""

    def __post_init__(self) -> None:
        self.weights = torch.ones(len(self.episodes), device=self.episodes.device)

    @property
    def keep(self) -> Tensor:
        """[rows] bool, True where the policy loss counts."""
        return self.weights > 0

    def reweight(self, weights: Tensor, *, reason: str, scores: Tensor | None = None) -> None:
        """Set the weight of each episode's policy loss.

        Args:
            weights: shape [rows], float, finite, >= 0. Zero drops the episode.
            reason: the rule's name, kept in `history`.
            scores: shape [rows], what the weights were made from, kept in `history`.

        Raises:
            UserError: the plan is sealed, or `weights` has another shape, a NaN, an infinity or a negative entry.
        """
        if self.sealed:
            raise UserError(f"plan.reweight: '{reason}' came after the update had begun; call it in on_rollout_end")
        if weights.shape != self.weights.shape:
            shape, expected = tuple(weights.shape), tuple(self.weights.shape)
            raise UserError(f"plan.reweight: weights of '{reason}' have shape {shape}, expected {expected}")
        weights = weights.detach().to(device=self.weights.device, dtype=self.weights.dtype, copy=True)
        if not bool(torch.isfinite(weights).all()):
            raise UserError(f"plan.reweight: weights of '{reason}' hold NaN or infinity; they must be finite")
        if bool((weights < 0).any()):
            raise UserError(f"plan.reweight: weights of '{reason}' go down to {float(weights.min()):g}; expected >= 0")
        self.weights = weights
        self.history.append(Reweighting(reason=reason, weights=self.weights, scores=scores))

    def record(self, **metrics: float) -> None:
        """Add numbers to this iteration's log; a double underscore in a name stands for the slash of its group."""
        self.metrics.update({name.replace("__", "/"): float(value) for name, value in metrics.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What one PPO iteration did, after its last optimizer step."""

    iteration: int
    """Counted from 0."""
    episodes: Episodes
    """The episodes of this iteration (of this rank)."""
    plan: UpdatePlan
    """The sealed plan."""
    kept_fraction: float
    """Fraction of the episodes of all ranks whose policy loss counted, in [0, 1]."""
    optimizer_steps: int
    """Optimizer steps of this iteration."""
    metrics: Mapping[str, float]
    """Everything worth a line in the log, `group/name`."""


class Minibatch:
    """The episodes of one backward pass with what divides their losses.

    A plain class on purpose: Lightning walks through dataclasses that pass a wrapped module and refuses frozen ones.
    """

    __slots__ = ("episodes", "policy_denominator", "value_denominator", "value_weights", "weights")

    def __init__(
        self,
        *,
        episodes: Episodes,
        weights: Tensor,
        value_weights: Tensor,
        policy_denominator: float,
        value_denominator: float,
    ) -> None:
        self.episodes = episodes
        """The episodes of this backward pass."""
        self.weights = weights
        """[rows] weight of each episode's policy loss."""
        self.value_weights = value_weights
        """[rows] weight of its value and entropy losses: one, or zero for an episode that only fills a rank."""
        self.policy_denominator = policy_denominator
        """Episodes (or tokens) that the policy loss of the whole optimizer step is divided by, over all ranks."""
        self.value_denominator = value_denominator
        """The same for the value and the entropy loss."""
