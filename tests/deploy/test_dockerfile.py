"""The reader of Dockerfiles behind the rehearsal, and the pins of the images."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.docker.dockerfile import DockerfileError, Healthcheck, Ignore, expand, parse
from deploy.validate.__main__ import ROOT

TEXT = """\
# comment
FROM python:3.11.14-slim-bookworm AS build
RUN one \\
    # comment inside
    && two

FROM build
HEALTHCHECK --interval=10s --start-period=2m \\
    CMD ["probe", "a b"]
CMD ["serve"]
CMD ["serve", "more"]
"""


def test_stages_steps_and_continuations() -> None:
    build, last = parse(TEXT)
    assert (build.name, build.base) == ("build", "python:3.11.14-slim-bookworm")
    assert (last.name, last.base) == ("1", "build")
    assert [(step.name, step.text, step.line) for step in build.instructions] == [
        ("RUN", "one && two", 3)
    ]
    command = last.last("CMD")
    assert command is not None and command.words() == ["serve", "more"]


def test_a_health_check_is_read_whole() -> None:
    instruction = parse(TEXT)[1].last("HEALTHCHECK")
    assert instruction is not None
    assert Healthcheck.of(instruction) == Healthcheck(["probe", "a b"], 10.0, 30.0, 120.0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM"),
        ("RUN x", "before any FROM"),
        ("FROM a\nADD b c", "line 2: ADD is not known"),
        ("FROM a\nRUN x \\", "continuation"),
        ("FROM a b", "FROM a b"),
    ],
)
def test_what_it_does_not_understand_it_refuses(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        parse(text)


def test_a_shell_form_health_check_is_refused() -> None:
    (stage,) = parse("FROM a\nHEALTHCHECK CMD probe")
    with pytest.raises(DockerfileError, match="exec form"):
        Healthcheck.of(stage.instructions[0])


def test_variables() -> None:
    assert expand("/opt/bin:$PATH ${X}y $NONE", {"PATH": "/bin", "X": "1"}) == "/opt/bin:/bin 1y "


def test_the_last_pattern_that_matches_decides() -> None:
    ignore = Ignore("*\n!server\n!deploy/docker/carv.toml\n**/__pycache__\n")
    sent = ["server/a/b.py", "deploy/docker/carv.toml"]
    kept = [
        "README.md",
        "deploy/docker/pin.py",
        "server/__pycache__/a.pyc",
        "server/a/__pycache__/b",
    ]
    assert [path for path in sent + kept if ignore.sends(path)] == sent


def test_the_pins_are_what_the_project_asks_for() -> None:
    """After a change of the requirements: python -m deploy.docker.pin."""
    text = (ROOT / "deploy/docker/constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = {name.replace("_", "-"): Version(version) for name, version in
            (line.split("==") for line in lines)}  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    extras = project["optional-dependencies"]
    wanted += [text for name in ("server", "ray", "tracing") for text in extras.get(name, ())]
    for requirement in map(Requirement, wanted):
        if requirement.name == "carv":
            continue
        assert requirement.name in pins, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pins[requirement.name]), str(requirement)
    shared = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for requirement in map(Requirement, (x for x in shared.splitlines() if x and x[0] != "#")):
        assert requirement.specifier.contains(pins[requirement.name]), str(requirement)
