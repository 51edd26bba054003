"""Stages of a Dockerfile, performed in overlays over this machine's root (rehearse.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.docker.dockerfile import DockerfileError, Ignore, Instruction, Stage, expand, parse

__all__ = ["Builder", "Built", "RehearsalError"]

_PINS = "deploy/docker/constraints.txt"
_UNPINNED = {"carv", "pip", "setuptools"}  # ours, and what a new venv holds
# What a builder passes to its steps: where packages are, and how to get out.
_PASSED = re.compile(r"(PIP_|HTTPS?_PROXY|https?_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE)")


class RehearsalError(RuntimeError):
    """A step failed, or the image would not do what it should."""


@dataclass
class Built:
    """A stage after its steps.

    Attributes:
        root: where its file system is mounted.
        layers: overlays' upper folders that make it up, its own first.
        stages: what it was made of, the base first; for what the metadata instructions say.
        environment: of ENV.
        user: numeric, of USER.
    """

    root: Path
    layers: list[Path]
    stages: list[Stage]
    environment: dict[str, str]
    workdir: str = "/"
    user: str = "0"
    sealed: bool = field(default=False)

    def last(self, name: str) -> Instruction | None:
        """The instruction in force, inherited where this stage has none."""
        return next(filter(None, (stage.last(name) for stage in reversed(self.stages))), None)

    def command(self) -> list[str]:
        """ENTRYPOINT and CMD."""
        return [
            word for name in ("ENTRYPOINT", "CMD") if (i := self.last(name)) for word in i.words()
        ]

    def name_loopback(self, name: str) -> None:
        """Another container's name, which here means this machine."""
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n", encoding="ascii")

    def seal(self) -> None:
        """Make the root read-only, with a fresh /tmp, as the deployments do."""
        if not self.sealed:
            _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(self.root / "tmp"))
            _mount("-o", "remount,ro,bind", str(self.root))
            self.sealed = True

    def confined(self, environment: Mapping[str, str]) -> list[str]:
        """What to put before a command so that it runs as in the container."""
        if not self.user.isdigit() or self.user == "0":
            raise RehearsalError(f"USER is {self.user!r}; the image needs a numeric one, not root")
        rights = ["--reuid", self.user, "--regid", self.user, "--clear-groups"]
        rights += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        variables = [f"{k}={v}" for k, v in (self.environment | dict(environment)).items()]
        chroot = ["chroot", str(self.root), "/usr/bin/setpriv", *rights]
        return [*chroot, "/usr/bin/env", "-i", "-C", self.workdir, *variables]


class Builder:
    """Performs Dockerfiles of one context.

    Args:
        context: the repository.
        folder: for the overlays; in a mount namespace that ends with the rehearsal.
        arguments: of ``--build-arg``.
    """

    def __init__(self, context: Path, folder: Path, arguments: Mapping[str, str]) -> None:
        self._context = context
        self._arguments = arguments
        self._folder = folder
        self._count = 0
        _mount("--make-rprivate", "/")
        # An overlay's own files may not lie inside what it covers: in memory, about 2 GiB.
        _mount("-t", "tmpfs", "tmpfs", str(folder))

    def build(self, dockerfile: str) -> Built:
        """The last stage of a Dockerfile, and those that it needs.

        Raises:
            RehearsalError: a step failed.
            DockerfileError: a step that is not understood.
        """
        stages = parse((self._context / dockerfile).read_text(encoding="utf-8"))
        ignore = Ignore((self._context / f"{dockerfile}.dockerignore").read_text(encoding="utf-8"))
        return self._stage(stages, len(stages) - 1, ignore, {}, dockerfile)

    def check_pins(self, built: Built) -> None:
        """Every package in the image is one that the constraints name, at that version."""
        text = (self._context / _PINS).read_text(encoding="utf-8")
        pinned = {_normal(line) for line in text.splitlines() if line and line[0] != "#"}
        script = "from importlib.metadata import distributions as d\n"
        script += "for x in d(): print(x.name + '==' + x.version.split('+')[0])"
        listed = self._run(built, ["/opt/carv/bin/python", "-c", script])
        loose = {_normal(line) for line in listed.splitlines()} - pinned
        loose = {name for name in loose if name.partition("==")[0] not in _UNPINNED}
        if loose:
            raise RehearsalError(f"{_PINS} does not pin {', '.join(sorted(loose))}")

    def _stage(
        self, stages: list[Stage], index: int, ignore: Ignore, done: dict[int, Built], source: str
    ) -> Built:
        if index in done:
            return done[index]
        stage = stages[index]
        names = {earlier.name: number for number, earlier in enumerate(stages[:index])}
        if stage.base in names:
            base = self._stage(stages, names[stage.base], ignore, done, source)
            root, layers = self._overlay(base.layers)
            stages_of = [*base.stages, stage]
            built = Built(root, layers, stages_of, dict(base.environment), base.workdir, base.user)
        else:
            self._check_base(stage.base)
            path = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            root, layers = self._overlay([])
            built = Built(root, layers, [stage], {"PATH": path})
            self._disguise(built.root)
        variables: dict[str, str] = {}
        for step in stage.instructions:
            where = f"{source}:{step.line}"
            print(f"rehearsal: {where} {step.name} {step.text}", flush=True)
            known = variables | built.environment
            if step.name == "ARG":
                name, _, default = step.text.partition("=")
                variables[name] = self._arguments.get(name, default)
            elif step.name == "ENV":
                pairs = (word.partition("=") for word in step.words())
                built.environment |= {name: expand(value, known) for name, _, value in pairs}
            elif step.name == "WORKDIR":
                built.workdir = expand(step.text, known)
                (built.root / built.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.name == "USER":
                built.user = step.text
            elif step.name == "RUN":
                self._run(built, ["/bin/sh", "-c", step.text], variables)
            elif step.name == "COPY":
                words = step.words()
                option = words.pop(0) if words[0].startswith("--") else ""
                if option and not option.startswith("--from="):
                    raise DockerfileError(f"{where}: COPY {option} is not known here")
                other = option.removeprefix("--from=")
                if other:
                    given = self._stage(stages, names[other], ignore, done, source).root
                    self._copy(built, given, words, None)
                else:
                    self._copy(built, self._context, words, ignore)
            # The rest (LABEL, EXPOSE, ENTRYPOINT, ...) describes the image and does nothing.
        done[index] = built
        return built

    def _check_base(self, image: str) -> None:
        found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", image)
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if found is None or found[1] != here:
            raise RehearsalError(f"Python {here} of this machine cannot stand in for {image}")

    def _overlay(self, lower: Sequence[Path]) -> tuple[Path, list[Path]]:
        self._count += 1
        top = self._folder / str(self._count)
        for name in ("upper", "work", "root"):
            (top / name).mkdir(parents=True)
        root = top / "root"
        upper, below = top / "upper", ":".join([*map(str, lower), "/"])
        options = f"lowerdir={below},upperdir={upper},workdir={top / 'work'}"
        _mount("-t", "overlay", "overlay", "-o", options, str(root))
        _devices(root / "dev")
        _mount("-t", "proc", "proc", str(root / "proc"))
        return root, [upper, *lower]

    def _disguise(self, root: Path) -> None:
        """Make this machine's root look like a fresh base image, in the overlay alone."""
        for path in ("/src", "/opt/carv", "/etc/carv"):
            if (root / path[1:]).exists():
                raise RehearsalError(f"{path} exists on this machine; it would not be clean")
        _mount("-t", "tmpfs", "tmpfs", str(root / str(self._context)[1:]))
        # The stand-in for the image's Python may be in a folder that only root may enter.
        for folder in Path(sys.base_prefix).parents:
            inside = root / str(folder)[1:]
            if not inside.stat().st_mode & 0o001:
                inside.chmod(inside.stat().st_mode | 0o001)

    def _run(
        self, built: Built, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> str:
        """In the stage, as root; the standard output."""
        passed = {k: v for k, v in os.environ.items() if _PASSED.match(k)}
        environment = passed | dict(variables or {}) | built.environment
        chroot = ["chroot", str(built.root), "/usr/bin/env", "-i", "-C", built.workdir]
        pairs = [f"{name}={value}" for name, value in environment.items()]
        result = subprocess.run(
            [*chroot, *pairs, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        if result.returncode != 0:
            raise RehearsalError(f"exit code {result.returncode}: {command[-1]}\n{result.stdout}")
        return result.stdout

    def _copy(
        self, built: Built, source: Path, words: Sequence[str], ignore: Ignore | None
    ) -> None:
        *given, target = words
        folder = target.endswith("/") or len(given) > 1
        place = built.root / str(Path(built.workdir) / target)[1:]
        for name in given:
            found = list(_files(source, name.strip("/"), ignore))
            if not found:
                raise RehearsalError(f"COPY {name}: nothing there that .dockerignore lets through")
            for path in found:
                inner = path.relative_to(source / name.strip("/"))
                end = place / Path(name).name if folder and inner == Path() else place / inner
                end.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, end, follow_symlinks=False)


def _devices(folder: Path) -> None:
    """What an engine gives a container, and no more of this machine's."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (folder / name).touch()
        _mount("--bind", f"/dev/{name}", str(folder / name))
    (folder / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", str(folder / "shm"))


def _files(source: Path, name: str, ignore: Ignore | None) -> Iterator[Path]:
    top = source / name
    paths = [top] if not top.is_dir() else sorted(top.rglob("*"))
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            continue
        if (path.exists() or path.is_symlink()) and (
            ignore is None or ignore.sends(str(path.relative_to(source)))
        ):
            yield path


def _normal(line: str) -> str:
    name, _, version = line.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower() + "==" + version.strip()


def _mount(*arguments: str) -> None:
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RehearsalError(f"mount {' '.join(arguments)}: {result.stderr.strip()}")
