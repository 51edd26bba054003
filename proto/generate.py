"""Generate the committed stubs next to their .proto files, or check that they are current.

    python proto/generate.py            write
    python proto/generate.py --check    compare; exit 1 and name each file that differs

Run by ``make proto`` and ``make lint`` in ``.venv-proto``, which holds the one generator
version that the stubs are made with (dependency group ``proto``).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generate(out: Path) -> None:
    """Generate every stub into ``out``; gRPC stubs only where a file declares a service."""
    protos = sorted(ROOT.glob("carv/**/*.proto"))
    services = [p for p in protos if "\nservice " in p.read_text(encoding="utf-8")]
    well_known = str(resources.files("grpc_tools") / "_proto")
    run = ["protoc", f"-I{ROOT}", f"-I{well_known}"]
    messages = [*run, f"--python_out={out}", f"--pyi_out={out}", *map(str, protos)]
    grpc = [*run, f"--grpc_python_out={out}", *map(str, services)]
    for command in (messages, grpc):
        if protoc.main(command) != 0:
            sys.exit("proto/generate.py: protoc failed")


def stubs(root: Path) -> dict[str, bytes]:
    """Every generated file under ``root``, by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in PATTERNS
        for path in root.glob(f"carv/**/{pattern}")
    }


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        generate(out)
        wanted, present = stubs(out), stubs(ROOT)
        drifted = sorted(
            file for file in wanted.keys() | present.keys() if wanted.get(file) != present.get(file)
        )
        if check:
            for file in drifted:
                print(f"proto/{file}: differs from its .proto; run `make proto` and commit")
            return 1 if drifted else 0
        for file in drifted:
            if file in wanted:
                shutil.copyfile(out / file, ROOT / file)
            else:
                (ROOT / file).unlink()
            print(f"proto/{file}: {'written' if file in wanted else 'removed, has no .proto'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
