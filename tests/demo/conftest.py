"""The convention of the embedded teacher, written out so that most tests do not wait for its
weights; and, for those that do, its server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from carv_client import TeacherClient
from carv_server.demo.convention import Convention, embedded_folder, read_convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.optimise import Studio
from carv_server.demo.process import running_server

DATASET = Path(__file__).parents[2] / "examples" / "embedded_teacher" / "dataset.py"

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "grey")
OTHER_WORDS = ("front", "side", "back", "overhead", "a", "an", "view", ",")


@pytest.fixture
def convention() -> Convention:
    return Convention(
        vocabulary=tuple(sorted({*SHAPES, *COLOURS, *OTHER_WORDS})),
        shapes=SHAPES,
        colours=COLOURS,
        views=("front", "side", "back", "overhead"),
        image_size=64,
        fov=40.0,
        distance=3.0,
        distance_jitter=0.04,
        elevation=(-5.0, 75.0),
        background=(0.92, 0.92, 0.92),
        overhead_above=60.0,
        front_within=45.0,
        back_within=45.0,
    )


@pytest.fixture(scope="session")
def dataset() -> ModuleType:
    """The teacher's training renderer."""
    specification = importlib.util.spec_from_file_location("embedded_teacher_dataset", DATASET)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Of "a red torus", with the embedded teacher behind a server of its own."""
    folder = embedded_folder()
    log = tmp_path_factory.mktemp("embedded") / "server.log"
    with running_server(log, threads=1) as server, TeacherClient(server.address) as client:
        yield Studio.open(client, read_convention(folder), ImageEncoder(folder), "a red torus")
