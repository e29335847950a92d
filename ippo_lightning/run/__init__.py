"""A run: the Fabric loop, its settings, checkpoints, loggers and signals."""

__all__: list[str] = []
