"""From the plan of an update to weights: what is scored, against what, and which rule decides."""

__all__: list[str] = []
