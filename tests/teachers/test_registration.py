"""``--teacher ID=FOLDER[,null_class=N]``."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_server.teachers.registry import EMBEDDED, TeacherRegistration, parse_registration


@pytest.mark.parametrize(
    ("text", "registration"),
    [
        ("sd=/models/sd", TeacherRegistration("sd", Path("/models/sd"))),
        ("a.b-c_9=models", TeacherRegistration("a.b-c_9", Path("models"))),
        ("digits=m,null_class=10", TeacherRegistration("digits", Path("m"), 10)),
        ("digits=m,null_class=0", TeacherRegistration("digits", Path("m"), 0)),
        # Folders may hold any character, a comma or an equals sign too.
        ("sd=/a=b,c", TeacherRegistration("sd", Path("/a=b,c"))),
    ],
)
def test_parsed(text: str, registration: TeacherRegistration) -> None:
    assert parse_registration(text) == registration


@pytest.mark.parametrize(
    "text", ["", "sd", "sd=", "=/models", "SD=/m", "s d=/m", "../x=/m", "-a=/m"]
)
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected ID=FOLDER\[,null_class=N\]"):
        parse_registration(text)


@pytest.mark.parametrize("value", ["", "-1", "x", "1.0", "1,null_class=2"])
def test_null_class_must_be_a_class(value: str) -> None:
    with pytest.raises(ValueError, match="null_class must be a class id"):
        parse_registration(f"digits=m,null_class={value}")


def test_embedded() -> None:
    assert EMBEDDED.id == "shapes" and EMBEDDED.folder.name == "shapes"
