from carv.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictionType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREDICTION_TYPE_UNSPECIFIED: _ClassVar[PredictionType]
    PREDICTION_TYPE_EPSILON: _ClassVar[PredictionType]
    PREDICTION_TYPE_V: _ClassVar[PredictionType]
    PREDICTION_TYPE_SAMPLE: _ClassVar[PredictionType]
    PREDICTION_TYPE_FLOW: _ClassVar[PredictionType]

class ScheduleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEDULE_KIND_UNSPECIFIED: _ClassVar[ScheduleKind]
    SCHEDULE_KIND_DISCRETE: _ClassVar[ScheduleKind]
    SCHEDULE_KIND_FLOW: _ClassVar[ScheduleKind]
PREDICTION_TYPE_UNSPECIFIED: PredictionType
PREDICTION_TYPE_EPSILON: PredictionType
PREDICTION_TYPE_V: PredictionType
PREDICTION_TYPE_SAMPLE: PredictionType
PREDICTION_TYPE_FLOW: PredictionType
SCHEDULE_KIND_UNSPECIFIED: ScheduleKind
SCHEDULE_KIND_DISCRETE: ScheduleKind
SCHEDULE_KIND_FLOW: ScheduleKind

class Schedule(_message.Message):
    __slots__ = ("kind", "alpha", "sigma")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    kind: ScheduleKind
    alpha: _containers.RepeatedScalarFieldContainer[float]
    sigma: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, kind: _Optional[_Union[ScheduleKind, str]] = ..., alpha: _Optional[_Iterable[float]] = ..., sigma: _Optional[_Iterable[float]] = ...) -> None: ...

class ConditioningTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: _tensor_pb2.DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ConditioningSchema(_message.Message):
    __slots__ = ("accepts_prompts", "classes", "has_unconditional", "tensors", "vocabulary")
    ACCEPTS_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    HAS_UNCONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    accepts_prompts: bool
    classes: int
    has_unconditional: bool
    tensors: _containers.RepeatedCompositeFieldContainer[ConditioningTensor]
    vocabulary: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, accepts_prompts: bool = ..., classes: _Optional[int] = ..., has_unconditional: bool = ..., tensors: _Optional[_Iterable[_Union[ConditioningTensor, _Mapping]]] = ..., vocabulary: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_draws", "max_renders", "max_branches", "max_evaluations", "max_prompts", "max_prompt_characters", "max_stream_requests", "max_kept_latents", "max_kept_latents_bytes")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    MAX_RENDERS_FIELD_NUMBER: _ClassVar[int]
    MAX_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    MAX_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_KEPT_LATENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_KEPT_LATENTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_draws: int
    max_renders: int
    max_branches: int
    max_evaluations: int
    max_prompts: int
    max_prompt_characters: int
    max_stream_requests: int
    max_kept_latents: int
    max_kept_latents_bytes: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_draws: _Optional[int] = ..., max_renders: _Optional[int] = ..., max_branches: _Optional[int] = ..., max_evaluations: _Optional[int] = ..., max_prompts: _Optional[int] = ..., max_prompt_characters: _Optional[int] = ..., max_stream_requests: _Optional[int] = ..., max_kept_latents: _Optional[int] = ..., max_kept_latents_bytes: _Optional[int] = ...) -> None: ...

class LatentScaling(_message.Message):
    __slots__ = ("scaling_factor", "shift_factor")
    SCALING_FACTOR_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FACTOR_FIELD_NUMBER: _ClassVar[int]
    scaling_factor: float
    shift_factor: float
    def __init__(self, scaling_factor: _Optional[float] = ..., shift_factor: _Optional[float] = ...) -> None: ...

class Teacher(_message.Message):
    __slots__ = ("id", "digest", "family", "event_shape", "schedule", "prediction_type", "conditioning_schema", "limits", "latent_scaling", "evaluation_seconds", "device", "description")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    EVENT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_TYPE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SCALING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    id: str
    digest: str
    family: str
    event_shape: _containers.RepeatedScalarFieldContainer[int]
    schedule: Schedule
    prediction_type: PredictionType
    conditioning_schema: ConditioningSchema
    limits: Limits
    latent_scaling: LatentScaling
    evaluation_seconds: float
    device: str
    description: str
    def __init__(self, id: _Optional[str] = ..., digest: _Optional[str] = ..., family: _Optional[str] = ..., event_shape: _Optional[_Iterable[int]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., prediction_type: _Optional[_Union[PredictionType, str]] = ..., conditioning_schema: _Optional[_Union[ConditioningSchema, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., latent_scaling: _Optional[_Union[LatentScaling, _Mapping]] = ..., evaluation_seconds: _Optional[float] = ..., device: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...
