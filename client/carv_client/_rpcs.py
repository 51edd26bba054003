"""The methods of the service: their names and message types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from carv.v1 import teacher_service_pb2 as pb

__all__ = [
    "CREATE_CONDITIONING",
    "CREATE_LATENTS",
    "ESTIMATE_GRADIENT",
    "GET_TEACHER",
    "LIST_TEACHERS",
    "PREDICT_NOISE",
    "PROFILE_TEACHER",
    "REFINE_GRADIENT",
    "STREAM_GRADIENTS",
    "Rpc",
]

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

_SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name


@dataclass(frozen=True)
class Rpc(Generic[Request, Reply]):
    """One method."""

    name: str
    request: type[Request]
    reply: type[Reply]

    @property
    def path(self) -> str:
        """As HTTP/2 calls it."""
        return f"/{_SERVICE}/{self.name}"


LIST_TEACHERS = Rpc("ListTeachers", pb.ListTeachersRequest, pb.ListTeachersResponse)
GET_TEACHER = Rpc("GetTeacher", pb.GetTeacherRequest, pb.GetTeacherResponse)
CREATE_CONDITIONING = Rpc(
    "CreateConditioning", pb.CreateConditioningRequest, pb.CreateConditioningResponse
)
CREATE_LATENTS = Rpc("CreateLatents", pb.CreateLatentsRequest, pb.CreateLatentsResponse)
ESTIMATE_GRADIENT = Rpc("EstimateGradient", pb.EstimateGradientRequest, pb.EstimateGradientResponse)
STREAM_GRADIENTS = Rpc("StreamGradients", pb.StreamGradientsRequest, pb.StreamGradientsResponse)
PREDICT_NOISE = Rpc("PredictNoise", pb.PredictNoiseRequest, pb.PredictNoiseResponse)
REFINE_GRADIENT = Rpc("RefineGradient", pb.RefineGradientRequest, pb.RefineGradientResponse)
PROFILE_TEACHER = Rpc("ProfileTeacher", pb.ProfileTeacherRequest, pb.ProfileTeacherResponse)
