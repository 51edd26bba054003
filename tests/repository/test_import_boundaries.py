"""The import order of the design holds, and each of its rules is able to fail."""

from pathlib import Path

import pytest

from tests.repository.import_boundaries import ROOT, read_modules, violations


def test_repository_keeps_the_boundaries() -> None:
    modules = read_modules(ROOT)
    assert "carv.tensors" in modules
    assert "carv_server.sampling.plan" in modules
    assert violations(modules) == []


def _violations_of(root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return violations(read_modules(root))


SERVER = "server/carv_server"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"{SERVER}/sampling/plan.py": "import grpc"}, "sampling core"),
        ({f"{SERVER}/sampling/plan.py": "def f():\n    import ray"}, "sampling core"),
        (
            {f"{SERVER}/sampling/plan.py": "from carv_server.teachers import protocol"},
            "a layer above",
        ),
        ({f"{SERVER}/sampling/plan.py": "from ..teachers import protocol"}, "a layer above"),
        ({f"{SERVER}/sampling/plan.py": "from carv_server import teachers"}, "a layer above"),
        ({f"{SERVER}/teachers/diffusers.py": "import grpc.aio"}, "transport"),
        ({f"{SERVER}/scheduler.py": "import carv_server.service"}, "a layer above"),
        ({f"{SERVER}/replicas/ray_pool.py": "def f():\n    import ray"}, "one module speaks to it"),
        ({f"{SERVER}/service.py": "import carv_client"}, "its client"),
        ({f"{SERVER}/novel.py": ""}, "no place in SERVER_LAYERS"),
        ({f"{SERVER}/cli.py": "import carv_server.novel"}, "no place in SERVER_LAYERS"),
        ({f"{SERVER}/__init__.py": "from carv_server.serve import serve"}, "__init__.py imports"),
        (
            {
                f"{SERVER}/request.py": "import carv_server.validation",
                f"{SERVER}/validation.py": "import carv_server.request",
            },
            "imports itself",
        ),
        ({"client/carv_client/_client.py": "import torch"}, "may not import torch"),
        ({"client/carv_client/_client.py": "import carv_server"}, "may not import carv_server"),
        (
            {"client/carv_client/__init__.py": "from carv_client.torch import f"},
            "may not import carv_client.torch",
        ),
        ({"proto/carv/tensors.py": "import grpc"}, "may not import grpc"),
        ({"proto/carv/tensors.py": "import carv_client"}, "may not import carv_client"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, files: dict[str, str], message: str) -> None:
    found = _violations_of(tmp_path, files)
    assert found
    assert all(message in line for line in found), found


def test_what_the_design_allows_is_allowed(tmp_path: Path) -> None:
    files = {
        f"{SERVER}/cli.py": "import carv_client\nfrom carv_server import serve",
        f"{SERVER}/serve.py": "import grpc\nfrom carv_server import config, service, replicas",
        f"{SERVER}/estimate.py": "from carv_server import request, scheduler\nimport torch",
        f"{SERVER}/request.py": "from carv import tensors",
        f"{SERVER}/replicas/forward.py": "import carv_server.replicas.protocol",
        f"{SERVER}/sampling/noise.py": "import torch\nfrom carv.noise import philox4x32",
        "client/carv_client/torch.py": "import torch\nfrom carv_client import TeacherClient",
        "proto/carv/v1/teacher_service_pb2_grpc.py": "import grpc",
        "client/carv_client/_transport.py": "from carv.v1 import teacher_service_pb2_grpc",
    }
    assert _violations_of(tmp_path, files) == []
