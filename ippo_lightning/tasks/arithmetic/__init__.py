"""Arithmetic chains: `7+12-5?` answered `7+12=19;19-5=14;#14`."""

__all__: list[str] = []
