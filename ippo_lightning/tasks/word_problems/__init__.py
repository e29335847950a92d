"""Short word problems of one or two steps, graded step by step."""

__all__: list[str] = []
