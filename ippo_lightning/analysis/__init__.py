"""What was learned from what: iterations of a run that kept its buffers, looked at again and trained again."""

from ippo_lightning.analysis.repeated import RepeatedRounds
from ippo_lightning.analysis.rounds import kept_rounds, read_round

__all__ = ["RepeatedRounds", "kept_rounds", "read_round"]
