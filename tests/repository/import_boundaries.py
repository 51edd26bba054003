"""Which module may import which: the one table, and the check over the syntax tree.

Every import counts, also inside a function or under TYPE_CHECKING. Run as a script by
``make lint``; ``test_import_boundaries.py`` shows that each rule can fail.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("proto/carv", "client/carv_client", "server/carv_server")

# carv_server from top to bottom: a module imports from its own row (without a cycle between
# modules) and from rows below it. A new module or subpackage gets a place here first.
SERVER_LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("bench",),  # reads the demo's scenes and encoder
    ("serve_command", "config_command", "profile_plot", "demo"),  # the subcommands
    ("serve",),  # the composition root
    # the gRPC front
    ("front", "guard", "listeners", "gradient_stream", "admission", "messages", "statuses"),
    ("prepare", "pools"),  # registrations to teachers that are ready to serve
    ("configured",),  # settings to the parts' own configuration
    ("config",),  # gathers the parts' own settings; no part reads it
    ("service",),
    ("encode",),
    ("conditioner",),
    ("call",),
    ("observability",),  # reads what is below, and is told by what is above
    (
        *("validation", "refine", "profile", "request", "estimate", "rows", "conditioning"),
        *("latents", "store"),
    ),
    ("scheduler",),
    ("scheduling", "history"),
    ("replicas",),
    ("settings",),  # flags, environment and file, checked
    ("teachers",),
    ("tenants", "tls"),  # who may call, and how it is encrypted
    ("errors",),  # plain exceptions that any of the above may raise
    ("sampling",),
    ("host", "ending"),  # the machine under the process, and its end
)

# (module, target): upward imports that are meant.
EXCEPTIONS = frozenset(
    {
        # A program of its own: runs the command line in a child that ends with its parent.
        ("carv_server.demo.child", "carv_server.cli"),
    }
)

_TRANSPORT = frozenset({"grpc", "grpc_health", "grpc_reflection"})
_MODEL_LIBRARIES = frozenset({"diffusers", "transformers"})


@dataclass(frozen=True)
class Forbidden:
    """``modules`` (with all below them, save ``but``) never import ``targets``."""

    modules: tuple[str, ...]
    targets: frozenset[str]
    why: str
    but: tuple[str, ...] = ()


FORBIDDEN = (
    Forbidden(
        ("carv_server.sampling",),
        _TRANSPORT | _MODEL_LIBRARIES | {"ray", "prometheus_client", "google"},
        "the sampling core is mathematics over arrays",
    ),
    Forbidden(
        tuple(
            f"carv_server.{name}"
            for name in ("estimate", "refine", "scheduler", "scheduling", "replicas", "teachers")
        ),
        _TRANSPORT,
        "transport stays at the edge; compute raises errors of its own",
    ),
    Forbidden(
        ("carv_server",),
        frozenset({"ray"}),
        "Ray is an extra, and one module speaks to it",
        but=(
            "carv_server.replicas.ray_cluster",
            "carv_server.sampling",  # above
            "carv_server.bench.peers.scripts",  # programs in environments of their own
        ),
    ),
    Forbidden(
        ("carv_server",),
        frozenset({"opentelemetry"}),
        "tracing is an extra, and two modules speak to it",
        but=(
            "carv_server.observability.tracing",
            "carv_server.observability.span_buffer",
            "carv_server.sampling",
        ),
    ),
    Forbidden(
        ("carv_server",),
        frozenset({"prometheus_client"}),
        "one package speaks to Prometheus",
        but=("carv_server.observability", "carv_server.sampling"),
    ),
    Forbidden(
        ("carv_server.observability",),
        _TRANSPORT | _MODEL_LIBRARIES | {"torch"},
        "what operators see is counted in plain numbers, of any transport and model",
    ),
    Forbidden(
        ("carv_server",),
        frozenset({"carv_client"}),
        "the server does not need its client",
        but=(
            "carv_server.cli",
            "carv_server.profile_plot",
            "carv_server.demo",
            "carv_server.bench",
        ),
    ),
)


@dataclass(frozen=True)
class Allowed:
    """A package imports the standard library, itself and these; ``extra`` adds to one module."""

    package: str
    targets: frozenset[str]
    extra: Mapping[str, frozenset[str]]


ALLOWED = (
    Allowed(
        "carv",
        frozenset({"numpy", "google"}),
        {"carv.v1.teacher_service_pb2_grpc": frozenset({"grpc"})},
    ),
    Allowed(
        "carv_client",
        frozenset({"carv", "numpy", "grpc", "google"}),
        {
            "carv_client.torch": frozenset({"torch"}),
            "carv_client.jax": frozenset({"jax", "jaxlib"}),
        },
    ),
)


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    imports: tuple[tuple[int, str], ...]
    """(line, dotted target)."""


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the three packages under a repository root, by dotted name."""
    modules: dict[str, Module] = {}
    for source in SOURCES:
        base = (root / source).parent
        for path in sorted((root / source).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            found = tuple(_imports(tree, name if is_package else name.rpartition(".")[0]))
            modules[name] = Module(name, path, found)
    return modules


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                head = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*head, base] if base else head)
            # `from a import b` may name the module a.b as well as something inside a.
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violations(modules: Mapping[str, Module]) -> list[str]:
    """One line for each breach, ``path:line: what``."""
    return [
        *_check_allowed(modules.values()),
        *_check_forbidden(modules.values()),
        *_check_layers(modules.values()),
    ]


def _check_allowed(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        for rule in ALLOWED:
            if not _within(module.name, rule.package):
                continue
            allowed = (
                rule.targets
                | rule.extra.get(module.name, frozenset())
                | sys.stdlib_module_names
                | {rule.package}
            )
            for line, target in module.imports:
                if target.partition(".")[0] not in allowed:
                    yield f"{module.path}:{line}: {module.name} may not import {target}"
                for bridge in rule.extra:
                    if bridge != module.name and _within(target, bridge):
                        if bridge.endswith("_pb2_grpc"):
                            continue
                        yield f"{module.path}:{line}: {module.name} may not import {bridge}"


def _check_forbidden(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        for rule in FORBIDDEN:
            if not any(_within(module.name, name) for name in rule.modules):
                continue
            if any(_within(module.name, name) for name in rule.but):
                continue
            for line, target in module.imports:
                if target.partition(".")[0] in rule.targets:
                    yield f"{module.path}:{line}: {module.name} imports {target}: {rule.why}"


def _check_layers(modules: Iterable[Module]) -> Iterator[str]:
    rank = {name: row for row, names in enumerate(SERVER_LAYERS) for name in names}
    siblings: dict[str, set[str]] = {}
    for module in modules:
        head, _, rest = module.name.partition(".")
        part = rest.partition(".")[0]
        if head != "carv_server" or not part:
            if head == "carv_server" and any(_within(t, head) for _, t in module.imports):
                yield f"{module.path}:1: carv_server/__init__.py imports nothing of carv_server"
            continue
        if part not in rank:
            yield f"{module.path}:1: carv_server.{part} has no place in SERVER_LAYERS ({__file__})"
            continue
        for line, target in module.imports:
            names = target.split(".")
            if names[0] != "carv_server" or len(names) < 2 or names[1] == part:
                continue
            if (module.name, ".".join(names[:2])) in EXCEPTIONS:
                continue
            if names[1] not in rank:
                yield f"{module.path}:{line}: {target} has no place in SERVER_LAYERS"
            elif rank[names[1]] < rank[part]:
                yield f"{module.path}:{line}: {module.name} imports {target}, a layer above it"
            elif rank[names[1]] == rank[part]:
                siblings.setdefault(part, set()).add(names[1])
    for part in siblings:
        if part in _reachable(part, siblings):
            yield f"carv_server.{part}: imports itself through modules of its own layer"


def _reachable(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    queue = list(edges.get(start, ()))
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue.extend(edges.get(name, ()))
    return found


def main() -> int:
    found = violations(read_modules(ROOT))
    print("\n".join(found) if found else "import boundaries: all kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
