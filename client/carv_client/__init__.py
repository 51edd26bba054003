"""Client of a CARV server: cached latents in, variance-reduced teacher gradients out.

    from carv_client import TeacherClient

    with TeacherClient("localhost:50051") as client:
        conditioning = client.create_conditioning("a red torus")
        estimate = client.estimate_gradient(latents, conditioning, draws=8, seed=0)
        estimate.gradient  # float32 [R, *event_shape]

Needs numpy, grpcio and protobuf alone; ``carv_client.torch`` bridges to autograd.
"""

from carv.noise import draw_noise
from carv_client._client import AsyncTeacherClient
from carv_client._config import DEFAULT_ADDRESS, ClientConfig
from carv_client._errors import (
    AuthenticationError,
    CarvError,
    ClientClosedError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    QuotaViolation,
    ResourceExhaustedError,
    UnavailableError,
    UnsentRequestError,
)
from carv_client._guidance import guidance_branches
from carv_client._kept import KeptLatents
from carv_client._options import EstimateOptions
from carv_client._profile_types import ProfileBin, TeacherProfile
from carv_client._sync import ReplyIterator, TeacherClient
from carv_client._types import (
    Branch,
    Conditioning,
    ConditioningTensor,
    DrawTable,
    Estimate,
    Limits,
    NoisePrediction,
    RefinedEstimate,
    Teacher,
)
from carv_client.planner import AmortisationWarning, DrawPlanner, Plan

__all__ = [
    "DEFAULT_ADDRESS",
    "AmortisationWarning",
    "AsyncTeacherClient",
    "AuthenticationError",
    "Branch",
    "CarvError",
    "ClientClosedError",
    "ClientConfig",
    "Conditioning",
    "ConditioningTensor",
    "DeadlineExceededError",
    "DrawPlanner",
    "DrawTable",
    "Estimate",
    "EstimateOptions",
    "FieldViolation",
    "InternalError",
    "InvalidRequestError",
    "KeptLatents",
    "Limits",
    "MessageTooLargeError",
    "NoisePrediction",
    "NotFoundError",
    "PermissionDeniedError",
    "Plan",
    "ProfileBin",
    "QuotaExceededError",
    "QuotaViolation",
    "RefinedEstimate",
    "ReplyIterator",
    "ResourceExhaustedError",
    "Teacher",
    "TeacherClient",
    "TeacherProfile",
    "UnavailableError",
    "UnsentRequestError",
    "draw_noise",
    "guidance_branches",
]
