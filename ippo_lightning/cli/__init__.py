"""The command line: `ippo fit | evaluate | compare | export | report`."""

__all__: list[str] = []
