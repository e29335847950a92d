"""`python -m ippo_lightning.cli` is `ippo`."""

import sys

from ippo_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
