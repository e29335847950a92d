"""Any split of a minibatch adds up to the undivided gradient: denominators are those of the whole."""

from __future__ import annotations

import torch
from training_parts import prepared, tiny_module

from ippo_lightning.records import Minibatch


def test_parts_of_a_minibatch_add_up_to_the_gradient_of_the_whole() -> None:
    """What a rank adds is its sum over the common denominator, so any split adds up to the undivided gradient."""
    module = tiny_module()
    episodes = prepared(module)

    def gradients(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        module.zero_grad()
        for rows in parts:
            minibatch = Minibatch(
                episodes=episodes.select(rows),
                weights=torch.ones(len(rows)),
                value_weights=torch.ones(len(rows)),
                policy_denominator=float(len(episodes)),
                value_denominator=float(len(episodes)),
            )
            module.minibatch_loss(minibatch)[0].backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    rows = torch.arange(len(episodes))
    for whole, halves in zip(gradients([rows]), gradients([rows[:5], rows[5:]]), strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)
