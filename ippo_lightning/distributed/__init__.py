"""Collectives over ranks, sharded tensors, and passes that all ranks make together."""

__all__: list[str] = []
