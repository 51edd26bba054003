"""``carv_server.demo.child`` that writes down every second what it holds, for ``benchmarks.soak``.

What is held is what malloc has given out and not got back, with a fair guess at Python's small
objects. Resident memory shows a leak only after hours: the server keeps freed memory for the next
forward, and the more of it the longer it runs, up to a gigabyte.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from carv_server.demo import child

__all__ = ["HELD_FILE", "held_bytes", "main"]

HELD_FILE = "CARV_BENCHMARK_HELD_FILE"
_SMALL_OBJECT_BYTES = 64
_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def held_bytes() -> int:
    """Of this process, now."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd + _SMALL_OBJECT_BYTES * sys.getallocatedblocks()


def _write(file: Path) -> None:
    while True:
        part = file.with_suffix(".part")
        part.write_text(str(held_bytes()))
        part.replace(file)
        time.sleep(1.0)


def main() -> int:
    """The arguments of ``carv_server.demo.child``; the file's name is in the environment."""
    file = Path(os.environ[HELD_FILE])
    threading.Thread(target=_write, args=(file,), daemon=True).start()
    return child.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
