"""What a server makes of one device: its evaluations a second over gRPC against the bare network's
in the same run.

    python -m benchmarks.device --out DIR

``models`` writes the networks, ``bare`` times them alone in a process of its own, ``served`` drives
servers, ``report`` makes tables and figures of what was written down.
"""
