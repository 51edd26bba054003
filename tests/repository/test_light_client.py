"""``import carv_client`` in an environment with the core dependencies alone.

A fresh virtual environment, the wheel, and what pip makes of its declared dependencies.
Needs a package index and fails without one: a skip would hide a heavy dependency.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

LIGHT = {"carv", "grpcio", "numpy", "protobuf", "typing-extensions"}  # the last is grpcio's own
HEAVY = ["torch", "diffusers", "transformers", "safetensors", "ray", "jax", "PIL", "scipy"]

PROGRAM = """
import asyncio, importlib.util, sys
import carv_client

with carv_client.TeacherClient("127.0.0.1:1"):
    pass

async def main():
    async with carv_client.AsyncTeacherClient("127.0.0.1:1"):
        pass

asyncio.run(main())
print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])
"""


@pytest.fixture(scope="module")
def light_python(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wheel = next(distributions.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    result = subprocess.run(
        [*pip, "install", "--quiet", str(wheel)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.fail(f"the light environment needs a package index:\n{result.stderr}", pytrace=False)
    return python


def test_only_light_packages_are_installed(light_python: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(light_python), "list", "--format=json"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    installed = {entry["name"].lower().replace("_", "-") for entry in json.loads(listed)}
    assert installed == LIGHT


def test_clients_are_constructed_without_torch(light_python: Path) -> None:
    result = subprocess.run(
        # -I: neither this repository nor the user's site-packages on the path.
        [str(light_python), "-I", "-W", "error", "-c", PROGRAM, *HEAVY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "[]\n"
