"""What a reward is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ippo_lightning.records import Example

# The return type must not name a class such as Tensor: the YAML parser would then take only functions whose annotation
# promises that class, and refuse a user's function without annotations.
Reward = Callable[[Sequence[str], Sequence[str], Sequence[Example]], Sequence[float]]
"""Called as `reward(prompts, responses, examples)`, each with one entry per episode. Returns one finite number per
episode: a sequence, a NumPy array or a tensor of shape [rows] or [rows, 1]. Or it returns a mapping from names to such
numbers: the reward is their sum, and each part is logged by its name. It may be an `async def`.

A reward with a parameter `episodes` also gets the `TextEpisodes` of the rollout, or None outside of one: token ids,
lengths, which were cut by the length limit, and the policy's device. One with a parameter `grader` also gets the grader
of the run, or None. One that cannot do without a rollout has an attribute `needs_rollout = True`: an evaluation, which
has texts only, does not call it, and without a grader is refused before the run instead of at its end. An evaluation
calls any other reward, unless it has an attribute `in_evaluation = False`."""
