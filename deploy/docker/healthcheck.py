"""Exit 0 where a gRPC server says SERVING (grpc.health.v1), else 1 and why on stderr.

python healthcheck.py ADDRESS [SERVICE]
"""

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0


def main() -> int:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    address, service = sys.argv[1], "".join(sys.argv[2:])
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods appear at run time
            reply: Any = stub.Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        print(f"{address}: {name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
