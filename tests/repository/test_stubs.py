"""The committed stubs run under every version that the declared ranges admit.

Stubs refuse a protobuf or grpcio older than their generator. That they are current is
checked by ``make proto-check``, which needs the generator.
"""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from tests.repository.import_boundaries import ROOT


def _floor(package: str) -> Version:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirement = next(r for r in map(Requirement, project["dependencies"]) if r.name == package)
    return next(Version(s.version) for s in requirement.specifier if s.operator == ">=")


def _generator_versions(files: str, pattern: str) -> set[Version]:
    paths = sorted((ROOT / "proto/carv").rglob(files))
    assert paths
    matches = [re.search(pattern, path.read_text(encoding="utf-8")) for path in paths]
    return {Version(match[1]) for match in matches if match}


def test_messages_run_under_the_oldest_protobuf_declared() -> None:
    generated = _generator_versions("*_pb2.py", r"# Protobuf Python Version: (\S+)")
    assert len(generated) == 1
    assert generated.pop() <= _floor("protobuf")


def test_services_run_under_the_oldest_grpcio_declared() -> None:
    generated = _generator_versions("*_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '(\S+)'")
    assert len(generated) == 1
    assert generated.pop() <= _floor("grpcio")
