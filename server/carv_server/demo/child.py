"""Runs the ``carv`` command as a child that ends when its parent does.

``python -m carv_server.demo.child PARENT_PID serve --address ...``: a parent that is killed
outright cannot stop its server, so the server looks for itself. Works wherever ``getppid`` does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

__all__ = ["main"]

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0


def _follow(parent: int) -> None:
    """Waits until the parent is gone; then a clean stop, and a hard one if that takes long."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Follows the process ``arguments[0]``, and runs the command line of the rest."""
    threading.Thread(target=_follow, args=(int(arguments[0]),), daemon=True).start()
    from carv_server.cli import main as carv

    return carv(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
