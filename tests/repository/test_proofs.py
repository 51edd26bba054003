"""tests/PROOFS.md names tests that exist, and the run that they are in. Broken by a test that is
renamed, or marked slow."""

from __future__ import annotations

import ast
import re

import pytest

from tests.repository.import_boundaries import ROOT

ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (ROOT / "tests" / "PROOFS.md").read_text().splitlines()
    if re.match(r"\| \d", line)
]


def _marks(file: str, name: str) -> str:
    """Decorators of a test, and marks of its module and of the names that they use."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    module = [
        ast.unparse(statement)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and "mark" in ast.unparse(statement)
    ]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return "\n".join([*map(ast.unparse, node.decorator_list), *module])
    raise AssertionError(f"{file} has no {name}")


def test_every_promise_has_its_row() -> None:
    assert {int(row[0]) for row in ROWS} == set(range(1, 31))
    assert all(row[3] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}-{row[4]}" for row in ROWS])
def test_every_named_test_is_there_and_runs_where_it_says(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[2])
    assert named
    for each in named:
        file, _, name = each.partition("::")
        if row[4] == "soak":
            assert (ROOT / file).is_file()
            continue
        marks = _marks(file, name)
        if row[4] == "slow":
            assert "slow" in marks, each
        else:
            assert "mark.slow" not in marks or "pytest.param" in marks, f"{each} is slow"
