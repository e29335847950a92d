"""Collectives over ranks, and tensors of which each rank holds a shard."""

__all__: list[str] = []
