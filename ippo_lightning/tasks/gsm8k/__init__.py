"""Grade-school word problems with worked answers."""

__all__: list[str] = []
