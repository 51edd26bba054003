"""The next render overlaps the remote gradient: every step descends the gradient of the one before.

    carv serve                              # elsewhere
    python examples/pipelined.py [ADDRESS]

The scene is a vector of 32 parameters and a view of it a random linear map to latents. A render
takes as long as the teacher does: it sleeps, as the CPU does while a renderer's GPU works.
"""

import sys
import time

import numpy as np

from carv_client import TeacherClient

STEPS, DRAWS, RATE = 100, 8, 0.05


def main(address: str) -> None:
    rng = np.random.default_rng(0)
    with TeacherClient(address) as client:
        shape = client.get_teacher().event_shape
        size = int(np.prod(shape))
        views = rng.normal(size=(16, size, 32)) / np.sqrt(size)

        def ask(x: np.ndarray, seed: int):
            return client.submit(x.reshape(1, *shape), draws=DRAWS, seed=seed)

        begun = time.perf_counter()
        for seed in range(10):
            ask(rng.normal(size=size), seed).result()
        seconds = (time.perf_counter() - begun) / 10

        def render(scene: np.ndarray, step: int):
            time.sleep(seconds)
            view = views[step % len(views)]
            return view @ scene, view.T  # the latents, and the way back to the parameters

        for delay in (0, 1):
            scene = np.ones(32)
            in_flight = []  # (way back, future) of the last `delay` steps
            begun = time.perf_counter()
            for step in range(STEPS):
                latents, pull_back = render(scene, step)
                in_flight.append((pull_back, ask(latents, step)))
                if len(in_flight) > delay:
                    pull_back, coming = in_flight.pop(0)
                    scene -= RATE * (pull_back @ coming.result().gradient.reshape(-1))
            rate = STEPS / (time.perf_counter() - begun)
            name = "pipelined" if delay else "blocking "
            print(f"{name} {rate:5.1f} steps/s   |scene| {np.linalg.norm(scene):.4f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051")
