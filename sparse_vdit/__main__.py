"""python -m sparse_vdit is sparse-vdit."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
