"""Files: atomic writes, the folder of a run, and text of any origin made safe to show."""

__all__: list[str] = []
