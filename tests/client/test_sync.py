"""The blocking facade: the same surface, many threads, and clean ends."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_type_hints

import pytest

from carv.errors import Reason
from carv_client import (
    AsyncTeacherClient,
    ClientClosedError,
    ClientConfig,
    EstimateOptions,
    TeacherClient,
)
from carv_client._drawing import DrawSettings
from carv_client._objective import ObjectiveSettings
from carv_client._options import ObjectiveOptions
from tests.client.scripted_server import Answer, Refusal, ScriptedServer, fails_first

HEALTHY = fails_first(0, Refusal.of(Reason.INTERNAL))


def methods(kind: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_with_the_same_signatures() -> None:
    blocking, asynchronous = methods(TeacherClient), methods(AsyncTeacherClient)
    assert set(blocking) == set(asynchronous)
    local = {"planner"}  # makes no call
    for name, member in asynchronous.items():
        calls = inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
        assert calls or name in local
        assert inspect.signature(blocking[name]) == inspect.signature(member)
        assert member.__doc__, name


def test_estimate_options_are_the_keyword_arguments_of_estimate_gradient() -> None:
    method = AsyncTeacherClient.estimate_gradient
    keywords = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    options = get_type_hints(EstimateOptions)
    hints = get_type_hints(method)
    assert sorted(options) == sorted(keywords)
    assert {name: hints[name] for name in keywords} == options


def test_every_question_has_the_objective_of_estimate_gradient() -> None:
    """``profile_teacher`` and ``submit`` take the same keywords with the same defaults."""
    parameters = inspect.signature(AsyncTeacherClient.estimate_gradient).parameters
    objective, drawing = dataclasses.fields(ObjectiveSettings), dataclasses.fields(DrawSettings)
    options = set(get_type_hints(EstimateOptions)) - {"timeout"}
    assert {each.name for each in objective} == set(get_type_hints(ObjectiveOptions))
    assert {each.name for each in (*objective, *drawing)} == options
    assert {each.name: each.default for each in (*objective, *drawing)} == {
        name: parameters[name].default for name in options
    }


def test_one_client_serves_many_threads() -> None:
    """Calls overlap: none is answered before as many are there as there are threads."""
    together = threading.Event()

    def answer(*_: Any) -> Answer:
        if len(server.calls) == 16:
            together.set()
        return together

    with (
        ScriptedServer(answer) as server,
        TeacherClient(server.address) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        list(pool.map(lambda _: client.list_teachers(timeout=10.0), range(64)))
        assert len(server.calls) == 64


def test_clients_come_and_go_on_one_thread() -> None:
    with ScriptedServer(HEALTHY) as server:
        for _ in range(20):
            with TeacherClient(server.address) as client:
                client.list_teachers()
        names = [thread.name for thread in threading.enumerate()]
    assert names.count("carv-client") == 1


def test_use_after_close() -> None:
    client = TeacherClient("localhost:1")
    client.close()
    client.close()
    with pytest.raises(ClientClosedError, match="the client is closed"):
        client.list_teachers()


def test_close_ends_the_calls_of_other_threads() -> None:
    with ScriptedServer(lambda *_: 30.0) as server:
        client = TeacherClient(server.address)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.list_teachers)
            while not server.calls:
                time.sleep(0.01)
            client.close()
            with pytest.raises(ClientClosedError):
                call.result(5)


def test_a_client_that_is_dropped_closes_its_connection() -> None:
    with ScriptedServer(HEALTHY) as server:
        client = TeacherClient(server.address)
        client.list_teachers()
        transport = client._client._transport
        del client
        gc.collect()
        for _ in range(500):
            if transport._closed:
                break
            time.sleep(0.01)
        assert transport._closed


SCRIPT = """
import os, signal, sys, threading
from carv_client import TeacherClient
address, ending = sys.argv[1:]
kept = [TeacherClient(address) for _ in range(3)]
for client in kept: client.list_teachers()
def stall():
    try: kept[0].get_teacher()  # the server never answers
    except Exception as error: print("ended:", type(error).__name__)
if ending == "in flight":
    threading.Thread(target=stall, daemon=True).start()
    import time; time.sleep(0.3)
if ending == "interrupted":
    # A shell's background job inherits an ignored SIGINT, and Python then leaves it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    try: kept[0].get_teacher()
    except KeyboardInterrupt: print("interrupted")
    kept[0].list_teachers()  # the client goes on working
if ending == "closed":
    for client in kept: client.close()
print("bye")
"""


@pytest.mark.parametrize("ending", ["open", "closed", "in flight", "interrupted"])
def test_the_interpreter_exits_cleanly_and_in_silence(ending: str) -> None:
    with ScriptedServer(lambda method, _: b"" if method == "ListTeachers" else 60.0) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT, server.address, ending],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "bye" in done.stdout


def _in_child(client: TeacherClient, answers: Any) -> None:
    for attempt in (client.list_teachers, lambda: TeacherClient("localhost:1")):
        try:
            attempt()
        except ClientClosedError as error:
            answers.put(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_use_after_a_fork_is_told() -> None:
    script = """
import multiprocessing
from tests.client.test_sync import _in_child
from carv_client import TeacherClient
context = multiprocessing.get_context("fork")
client, answers = TeacherClient("localhost:1"), context.Queue()
child = context.Process(target=_in_child, args=(client, answers))
child.start()
for _ in range(2): print(answers.get(timeout=10))
child.join(10)
print("exit code", child.exitcode)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.count("forked") == 2, done.stderr
    assert "exit code 0" in done.stdout


def test_a_spawned_process_has_a_client_of_its_own() -> None:
    with ScriptedServer(HEALTHY) as server, TeacherClient(server.address) as client:
        client.list_teachers()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_list_in_child, (server.address,)) == 0


def _list_in_child(address: str) -> int:
    with TeacherClient(address) as client:
        return len(client.list_teachers())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"address": ""}, "address"),
        ({"retry_attempts": 0}, "retry_attempts"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"private_key": b"k"}, "go together"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ClientConfig(**arguments)
