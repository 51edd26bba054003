"""Ray replicas of the registered teachers: one pool each, from configuration to a running queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager

import torch

from carv_server.config import ServerConfig
from carv_server.prepare import preparation
from carv_server.replicas.ray_cluster import open_cluster
from carv_server.replicas.ray_pool import RayPool
from carv_server.replicas.ray_replica import WorkerSettings
from carv_server.scheduler import Scheduler

__all__ = ["ray_pools", "start_pools", "waiting_seconds"]


@contextmanager
def ray_pools(config: ServerConfig) -> Iterator[dict[str, RayPool]]:
    """A pool of Ray replicas for every registered teacher, by id, not started yet; connected to the
    cluster inside.

    Raises:
        ClusterError: Ray is not installed, or the cluster cannot be had.
        ValueError: an id is registered twice, the device is not Ray's to choose from, or it lacks
            what ``cuda_graphs`` needs.
    """
    assert config.ray is not None
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {config.device}: Ray chooses the GPU; say auto, cpu or cuda")
    ids = [registration.id for registration in config.teachers]
    for teacher_id in ids:
        if ids.count(teacher_id) > 1:
            raise ValueError(f"teacher id {teacher_id!r} is registered twice")
    wanted, cpu = preparation(config), torch.device("cpu")
    if config.device == "cpu":
        wanted.check(cpu)
    cluster = open_cluster(config.ray, len(ids))
    try:
        given = config.ray.gpus_per_replica
        if config.device == "auto" and not (cluster.gpus if given is None else given):
            wanted.check(cpu)
        yield {
            registration.id: RayPool(
                cluster,
                WorkerSettings(
                    registration,
                    device=config.device,
                    dtype=registration.dtype or config.dtype,
                    threads=config.torch_threads or max(1, int(config.ray.cpus_per_replica)),
                    preparation=wanted,
                    warm_up=config.warm_up,
                ),
                config.ray,
            )
            for registration in config.teachers
        }
    finally:
        cluster.close()


async def start_pools(
    pools: Mapping[str, RayPool], stack: AsyncExitStack, signalled: asyncio.Event
) -> bool:
    """Start pools, to be stopped by the stack; False where a signal came first."""
    stop = asyncio.create_task(signalled.wait())
    for pool in pools.values():
        stack.push_async_callback(pool.stop)
        start = asyncio.create_task(pool.start())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
            return False
        await start
    stop.cancel()
    return True


def waiting_seconds(scheduler: Scheduler) -> Callable[[], float]:
    """Work in the queue, in seconds of one replica."""
    return lambda: scheduler.waiting.evaluations * scheduler.evaluation_seconds
