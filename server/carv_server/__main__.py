"""``python -m carv_server`` is the ``carv`` command."""

import sys

from carv_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
