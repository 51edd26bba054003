"""The CARV contract: message types, the tensor codec, the error catalogue and the noise law.

Needs numpy and protobuf alone. Both the client and the server build on it.
"""

__all__ = ["CONTRACT_VERSION", "DEFAULT_MAX_MESSAGE_BYTES"]

CONTRACT_VERSION = "v1"

DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest request or reply, in bytes, unless configured. gRPC's own default of 4 MiB
is below a 16 x 4 x 128 x 128 float32 request."""
