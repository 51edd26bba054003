from carv.v1 import conditioning_pb2 as _conditioning_pb2
from carv.v1 import objective_pb2 as _objective_pb2
from carv.v1 import sampling_pb2 as _sampling_pb2
from carv.v1 import teacher_pb2 as _teacher_pb2
from carv.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VarianceEstimator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VARIANCE_ESTIMATOR_UNSPECIFIED: _ClassVar[VarianceEstimator]
    VARIANCE_ESTIMATOR_UNAVAILABLE: _ClassVar[VarianceEstimator]
    VARIANCE_ESTIMATOR_UNBIASED: _ClassVar[VarianceEstimator]
    VARIANCE_ESTIMATOR_CONSERVATIVE: _ClassVar[VarianceEstimator]
VARIANCE_ESTIMATOR_UNSPECIFIED: VarianceEstimator
VARIANCE_ESTIMATOR_UNAVAILABLE: VarianceEstimator
VARIANCE_ESTIMATOR_UNBIASED: VarianceEstimator
VARIANCE_ESTIMATOR_CONSERVATIVE: VarianceEstimator

class ListTeachersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTeachersResponse(_message.Message):
    __slots__ = ("teachers",)
    TEACHERS_FIELD_NUMBER: _ClassVar[int]
    teachers: _containers.RepeatedCompositeFieldContainer[_teacher_pb2.Teacher]
    def __init__(self, teachers: _Optional[_Iterable[_Union[_teacher_pb2.Teacher, _Mapping]]] = ...) -> None: ...

class GetTeacherRequest(_message.Message):
    __slots__ = ("teacher",)
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    def __init__(self, teacher: _Optional[str] = ...) -> None: ...

class GetTeacherResponse(_message.Message):
    __slots__ = ("teacher",)
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    teacher: _teacher_pb2.Teacher
    def __init__(self, teacher: _Optional[_Union[_teacher_pb2.Teacher, _Mapping]] = ...) -> None: ...

class CreateConditioningRequest(_message.Message):
    __slots__ = ("teacher", "source")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    source: _conditioning_pb2.ConditioningSource
    def __init__(self, teacher: _Optional[str] = ..., source: _Optional[_Union[_conditioning_pb2.ConditioningSource, _Mapping]] = ...) -> None: ...

class CreateConditioningResponse(_message.Message):
    __slots__ = ("conditionings", "teacher_digest")
    CONDITIONINGS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    conditionings: _containers.RepeatedCompositeFieldContainer[_conditioning_pb2.Conditioning]
    teacher_digest: str
    def __init__(self, conditionings: _Optional[_Iterable[_Union[_conditioning_pb2.Conditioning, _Mapping]]] = ..., teacher_digest: _Optional[str] = ...) -> None: ...

class EstimateGradientRequest(_message.Message):
    __slots__ = ("teacher", "latents", "objective", "sampling", "explicit_draws", "seed", "return_draws")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RETURN_DRAWS_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    latents: _tensor_pb2.Tensor
    objective: _objective_pb2.Objective
    sampling: _sampling_pb2.Sampling
    explicit_draws: _sampling_pb2.ExplicitDraws
    seed: int
    return_draws: bool
    def __init__(self, teacher: _Optional[str] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., objective: _Optional[_Union[_objective_pb2.Objective, _Mapping]] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., explicit_draws: _Optional[_Union[_sampling_pb2.ExplicitDraws, _Mapping]] = ..., seed: _Optional[int] = ..., return_draws: bool = ...) -> None: ...

class Diagnostics(_message.Message):
    __slots__ = ("variance_estimator", "noise_variance", "effective_sample_size")
    VARIANCE_ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    NOISE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SAMPLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    variance_estimator: VarianceEstimator
    noise_variance: _tensor_pb2.Tensor
    effective_sample_size: _tensor_pb2.Tensor
    def __init__(self, variance_estimator: _Optional[_Union[VarianceEstimator, str]] = ..., noise_variance: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., effective_sample_size: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "compute_seconds", "total_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class DrawTable(_message.Message):
    __slots__ = ("timesteps", "noise_indices", "signs", "importance_weights")
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    NOISE_INDICES_FIELD_NUMBER: _ClassVar[int]
    SIGNS_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    timesteps: _tensor_pb2.Tensor
    noise_indices: _tensor_pb2.Tensor
    signs: _tensor_pb2.Tensor
    importance_weights: _tensor_pb2.Tensor
    def __init__(self, timesteps: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., noise_indices: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., signs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., importance_weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EstimateGradientResponse(_message.Message):
    __slots__ = ("gradient", "diagnostics", "teacher_digest", "seed", "sampling", "draws_spent", "evaluations_spent", "timings", "draw_table")
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DRAWS_SPENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_SPENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DRAW_TABLE_FIELD_NUMBER: _ClassVar[int]
    gradient: _tensor_pb2.Tensor
    diagnostics: Diagnostics
    teacher_digest: str
    seed: int
    sampling: _sampling_pb2.Sampling
    draws_spent: int
    evaluations_spent: int
    timings: Timings
    draw_table: DrawTable
    def __init__(self, gradient: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., diagnostics: _Optional[_Union[Diagnostics, _Mapping]] = ..., teacher_digest: _Optional[str] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., draws_spent: _Optional[int] = ..., evaluations_spent: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., draw_table: _Optional[_Union[DrawTable, _Mapping]] = ...) -> None: ...

class PredictNoiseRequest(_message.Message):
    __slots__ = ("teacher", "conditionings", "latents", "noisy_latents", "explicit_draws", "seed")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    CONDITIONINGS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    NOISY_LATENTS_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    conditionings: _containers.RepeatedScalarFieldContainer[str]
    latents: _tensor_pb2.Tensor
    noisy_latents: _tensor_pb2.Tensor
    explicit_draws: _sampling_pb2.ExplicitDraws
    seed: int
    def __init__(self, teacher: _Optional[str] = ..., conditionings: _Optional[_Iterable[str]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., noisy_latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., explicit_draws: _Optional[_Union[_sampling_pb2.ExplicitDraws, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class PredictNoiseResponse(_message.Message):
    __slots__ = ("noise_prediction", "teacher_digest", "seed", "evaluations_spent", "timings", "draws_spent")
    NOISE_PREDICTION_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_SPENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_SPENT_FIELD_NUMBER: _ClassVar[int]
    noise_prediction: _tensor_pb2.Tensor
    teacher_digest: str
    seed: int
    evaluations_spent: int
    timings: Timings
    draws_spent: int
    def __init__(self, noise_prediction: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., teacher_digest: _Optional[str] = ..., seed: _Optional[int] = ..., evaluations_spent: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., draws_spent: _Optional[int] = ...) -> None: ...
