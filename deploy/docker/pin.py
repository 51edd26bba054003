"""Write constraints.txt: the exact version of every package in the images.

    python -m deploy.docker.pin

Asks pip what it would install for carv[ray,tracing], the largest of them, under the repository's
own constraints.txt. Run it when the requirements change, or to move to newer versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "deploy/docker/constraints.txt"
_HEADER = "# Every package of the images, exact. Written by: python -m deploy.docker.pin\n"


def main() -> int:
    """Exit code of pip."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--report", "-", "--constraint", "constraints.txt", ".[ray,tracing]"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode == 0:
        found = [entry["metadata"] for entry in json.loads(result.stdout)["install"]]
        # A local version (+cpu) says where a wheel came from, which the index decides.
        pins = {entry["name"].lower(): entry["version"].partition("+")[0] for entry in found}
        del pins["carv"]
        lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
        TARGET.write_text(_HEADER + "".join(lines), encoding="utf-8")
        print(f"{len(lines)} packages in {TARGET.relative_to(ROOT)}")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
