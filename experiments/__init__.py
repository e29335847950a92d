"""Experiments as YAML files by axes: a run is base + task + model + method, and a grid compares such runs."""

__all__: list[str] = []
