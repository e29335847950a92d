"""What scoring raises when a number it would return could not be trusted."""

from ippo_lightning.errors import UserError


class CoverageError(UserError):
    """A parameter counts in the direction, but the hooks cannot attribute its gradient to single episodes."""


class NonFiniteScoreError(UserError):
    """Some episodes scored NaN or infinity.

    Args:
        message: one line.
        positions: of the episodes, in the order of the batches; those of the first batch that has any.
    """

    def __init__(self, message: str, *, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.positions = positions


class ChecksumError(RuntimeError):
    """The scores of a micro-batch do not add up to what plain autograd says about the same micro-batch."""
