"""Questions from files, saved data sets or the Hub, with columns of any name."""

__all__: list[str] = []
