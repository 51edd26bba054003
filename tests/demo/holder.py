"""``python -m tests.demo.holder WHERE TEACHER``: ``carv demo`` with all of its work replaced by a
wait, for tests that end it from outside.

The real command line and the real server process, with the oracle teacher in it. Writes the
server's process id to WHERE/pid once the server is healthy.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from carv_server import cli
from carv_server.demo import run as demo_run
from carv_server.demo.process import running_server


def main(where: Path, teacher: str) -> int:
    def wait(demo: demo_run.Demo) -> NoReturn:
        arguments = ["--teacher", teacher]
        with running_server(where / "server.log", threads=1, arguments=arguments) as server:
            (where / "pid.part").write_text(str(server.pid))
            (where / "pid.part").rename(where / "pid")
            while True:
                time.sleep(0.05)

    demo_run.run_demo = wait
    return cli.main(["demo", "--output", str(where / "out")])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
