"""The one place that touches Ray: a cluster of our own on the loopback interface, or one that is
there, and the few calls that replicas need of it.

Ray keeps one connection per process, and reads its settings from the environment when it is
imported: nothing else may have imported it before.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any, cast

import numpy.typing as npt

from carv_server.replicas.protocol import ReplicaStartError
from carv_server.replicas.ray_config import RayConfig

__all__ = ["ClusterError", "RayCluster", "open_cluster"]

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_REPLY_BYTES = 1 << 20
_REACH_SECONDS = 5.0


class ClusterError(ReplicaStartError):
    """No cluster: Ray is not installed, or the address does not answer as one."""


class RayCluster:
    """An open connection; ``open_cluster`` makes one.

    Args:
        ray: the module, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    @property
    def gpus(self) -> float:
        """In all of its nodes."""
        return self._ray.cluster_resources().get("GPU", 0.0)

    def free(self) -> Mapping[str, float]:
        """CPUs and GPUs that nobody has."""
        free: Mapping[str, float] = self._ray.available_resources()
        return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}

    def spawn(self, kind: type, *arguments: Any, cpus: float, gpus: float) -> Any:
        """An actor, created once there is a place for it: a handle at once.

        Ray restarts none of them: the front would not know that a worker is another one.

        Raises:
            ReplicaStartError: the cluster takes none.
        """
        actor = self._ray.remote(kind).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            enable_task_events=False,
        )
        try:
            return actor.remote(*arguments)
        except self._ray.exceptions.RayError as error:
            raise ReplicaStartError(_first_line(error)) from error

    def call(self, method: Any, *arguments: Any) -> asyncio.Future[Any]:
        """Call an actor's method; arrays of an argument's own go by shared memory where large."""
        return asyncio.wrap_future(method.remote(*arguments).future())

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error of ``call`` says that the actor is gone, and not what it raised."""
        exceptions = self._ray.exceptions
        return isinstance(error, exceptions.RayError) and not isinstance(
            error, exceptions.RayTaskError
        )

    def put(self, array: npt.NDArray[Any]) -> Any:
        """Copy into shared memory; stands for the array in ``call``. Blocks."""
        return self._ray.put(array)

    def kill(self, actor: Any) -> None:
        """End the actor's process; a frozen one within seconds."""
        self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Leave; a cluster of our own ends, with every process of it."""
        self._ray.shutdown()


def open_cluster(config: RayConfig, teachers: int) -> RayCluster:
    """Connect, or start a cluster of our own that ends with this process.

    Args:
        teachers: served, each with its own replicas; sizes a cluster of our own.

    Raises:
        ClusterError: it says what to do.
    """
    own = not config.address
    _set_environment(_LOCAL_ENVIRONMENT if own else _ENVIRONMENT)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            f"--replicas ray needs Ray ({error}); install it with: pip install 'carv[ray]'"
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    if own:
        cpus = math.ceil(teachers * config.scale.max_replicas * config.cpus_per_replica)
        _start(
            address="local",
            num_cpus=max(1, cpus),
            include_dashboard=False,
            object_store_memory=config.object_store_bytes,
            _node_ip_address=_LOOPBACK,
            # A result of one 4x64x64 render is 128 KiB, just above what by default goes with the
            # reply and not by way of shared memory, which takes twice the time.
            _system_config={"max_direct_call_object_size": _REPLY_BYTES},
        )
        if ray.util.get_node_ip_address() != _LOOPBACK:
            ray.shutdown()
            raise ClusterError(
                "Ray would listen on more than the loopback interface: it was imported before "
                "its settings were made"
            )
    else:
        _reach(config.address)
        what = f"--ray-address {config.address}"
        _connect(config.connect_seconds, what, address=config.address)
    resources = cast(Mapping[str, float], ray.cluster_resources())
    nodes = cast(list[Any], ray.nodes())
    _log.info(
        "Ray %s: %g CPUs and %g GPUs in %d nodes",
        config.address or "on the loopback interface",
        resources.get("CPU", 0),
        resources.get("GPU", 0),
        len(nodes),
    )
    return RayCluster(ray)


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Releases differ in whether an actor that asks for no GPU sees any; --device decides instead.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_LOCAL_ENVIRONMENT = _ENVIRONMENT | {
    # Whoever reaches a Ray port runs code. By itself Ray turns a loopback address into the
    # machine's outward one and listens on all interfaces, on every system but those where this
    # variable means what it says: no nodes but this one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach loopback too.
    "RAY_AUTH_MODE": "token",
}


def _set_environment(wanted: Mapping[str, str]) -> None:
    os.environ.update(wanted)
    if "RAY_AUTH_MODE" in wanted and "RAY_AUTH_TOKEN" not in os.environ:
        # Else Ray would keep one in a file of the home folder, which a container may not have.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _reach(address: str) -> None:
    """Ray takes two minutes to say that nothing listens, and then ends the process."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise ClusterError(f"--ray-address {address!r}: expected host:port or 'auto'")
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--ray-address {address}: cannot be reached: {error}") from None


def _start(**arguments: Any) -> None:
    """A cluster of our own. On the calling thread: its processes end with the thread that started
    them."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _init(**arguments)
    except Exception as error:  # of many kinds; each means that it did not start
        raise ClusterError(f"a local Ray cluster did not start: {_first_line(error)}") from error
    finally:
        # Ray's own handler would end the process without a drain.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _connect(seconds: float, what: str, **arguments: Any) -> None:
    """Join a cluster within a time: on a thread of its own, which is left behind where Ray waits
    on."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            _init(**arguments)
        except BaseException as error:  # noqa: BLE001 - SystemExit too; raised again outside
            failure.append(error)

    thread = threading.Thread(target=work, name="ray-init", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ClusterError(f"{what}: no answer as a Ray cluster within {seconds:g} s")
    if failure:
        raise ClusterError(f"{what}: {_first_line(failure[0])}")


def _init(**arguments: Any) -> None:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
