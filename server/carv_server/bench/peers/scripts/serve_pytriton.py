"""The work behind PyTriton: NVIDIA's Triton server with its dynamic batcher, Python behind it.

gRPC inference.GRPCInferenceService/ModelInfer, model "denoiser": t int64 [1], z float32
"""

from __future__ import annotations

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from work import load_work, served_port

work = load_work()


@batch
def denoise(t: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    return {"noise": work.predict(z, t[:, 0])}


if __name__ == "__main__":
    config = TritonConfig(
        allow_http=True,  # PyTriton asks it for readiness
        http_address="127.0.0.1",
        http_port=served_port() + 1,
        grpc_address="127.0.0.1",
        grpc_port=served_port(),
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="denoiser",
            infer_func=denoise,
            inputs=[
                Tensor(name="t", dtype=np.int64, shape=(1,)),
                Tensor(name="z", dtype=np.float32, shape=work.event_shape),
            ],
            outputs=[Tensor(name="noise", dtype=np.float32, shape=work.event_shape)],
            config=ModelConfig(
                max_batch_size=work.max_batch,
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=round(1e6 * work.window_seconds)
                ),
            ),
            strict=False,
        )
        triton.serve()
