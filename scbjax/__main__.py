"""``python -m scbjax``: the ``scbjax`` command."""

import sys

from scbjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
