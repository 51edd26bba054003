"""What the public modules of the contract and the client export, and nothing by accident."""

import ast
import importlib
from pathlib import Path

import pytest

from tests.repository.import_boundaries import ROOT, read_modules

PUBLIC = sorted(
    (name, module.path)
    for name, module in read_modules(ROOT).items()
    if name.partition(".")[0] in {"carv", "carv_client"}
    and not any(part.startswith("_") for part in name.split("."))
    and not name.endswith(("_pb2", "_pb2_grpc"))
    and name not in {"carv.v1", "carv.rpc"}  # packages of generated modules
)


@pytest.mark.parametrize(("name", "path"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_all_names_what_is_public(name: str, path: Path) -> None:
    module = importlib.import_module(name)
    exported = module.__all__
    assert len(set(exported)) == len(exported)
    missing = [item for item in exported if not hasattr(module, item)]
    assert missing == [], "in __all__, but not there"

    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    if path.name == "__init__.py":  # a package gathers its public names by importing them
        public |= {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module != "__future__"
            for alias in node.names
        }
    unlisted = {item for item in public if not item.startswith("_")} - set(exported)
    assert unlisted == set(), "public, but not in __all__"


def test_the_client_is_there() -> None:
    client = importlib.import_module("carv_client")
    assert {"AsyncTeacherClient", "TeacherClient"} <= set(client.__all__)
