"""The work behind Ray Serve: its gRPC ingress (HAProxy where the environment enables it), one
replica, ``serve.batch``.

    gRPC carv.peers.Denoiser/Predict, a google.protobuf.BytesValue each way

Ray Serve's gRPC servers listen on every interface, whatever they are told; the benchmark runs
them where there is none but loopback.
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import ray
from google.protobuf.wrappers_pb2 import BytesValue
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from work import load_work, predict_bytes, served_port

stated = load_work()


def add_denoiser_to_server(servicer: Any, server: Any) -> None:
    """What protoc would generate for the one method."""
    method = grpc.unary_unary_rpc_method_handler(
        servicer.Predict,
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("carv.peers.Denoiser", {"Predict": method})
    server.add_generic_rpc_handlers((handler,))


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class Denoiser:
    def __init__(self) -> None:
        self.work = load_work()
        self.thread = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=stated.max_batch, batch_wait_timeout_s=stated.window_seconds)
    async def denoise(self, rows: list[bytes]) -> list[bytes]:
        # In a thread, so that the replica's event loop goes on taking requests.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, predict_bytes, self.work, rows)

    async def Predict(self, request: BytesValue) -> BytesValue:
        return BytesValue(value=await self.denoise(request.value))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
        logging_level="warning",
        log_to_driver=False,
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host="127.0.0.1", port=served_port() + 1),
        grpc_options=gRPCOptions(
            port=served_port(), grpc_servicer_functions=["serve_ray.add_denoiser_to_server"]
        ),
    )
    serve.run(Denoiser.bind(), name="denoiser", route_prefix="/denoiser")
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()
