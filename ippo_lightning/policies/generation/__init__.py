"""Samplers: transformers' loop, its continuous batching, and vLLM."""

__all__: list[str] = []
