"""The wheel and the sdist hold the packages with their data, and nothing else."""

import tarfile
import zipfile
from pathlib import Path

from tests.repository.import_boundaries import ROOT, SOURCES

IGNORED = {"__pycache__"}


def _package_files() -> set[str]:
    """Files of the three packages by their path in the wheel."""
    return {
        str(path.relative_to((ROOT / source).parent))
        for source in SOURCES
        for path in (ROOT / source).rglob("*")
        if path.is_file() and not IGNORED & set(path.parts)
    }


def test_the_wheel_is_the_three_packages_with_their_data(distributions: Path) -> None:
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    metadata = {name for name in names if name.startswith("carv-")}
    assert names - metadata == _package_files()
    assert {"carv/v1/teacher_service.proto", "carv/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_sdist_builds_the_same_wheel(distributions: Path) -> None:
    archive = next(distributions.glob("*.tar.gz"))
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.removeprefix(f"{top}/") for name in sdist.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for source in SOURCES
        for path in (ROOT / source).rglob("*")
        if path.is_file() and not IGNORED & set(path.parts)
    }
    assert sources <= names
    assert {"pyproject.toml", "LICENSE"} <= names
