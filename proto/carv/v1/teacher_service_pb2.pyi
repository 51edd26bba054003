from carv.rpc import status_pb2 as _status_pb2
from carv.v1 import conditioning_pb2 as _conditioning_pb2
from carv.v1 import latents_pb2 as _latents_pb2
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

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_TARGET: _ClassVar[StopReason]
    STOP_REASON_DRAW_BUDGET: _ClassVar[StopReason]
    STOP_REASON_TIME_BUDGET: _ClassVar[StopReason]
VARIANCE_ESTIMATOR_UNSPECIFIED: VarianceEstimator
VARIANCE_ESTIMATOR_UNAVAILABLE: VarianceEstimator
VARIANCE_ESTIMATOR_UNBIASED: VarianceEstimator
VARIANCE_ESTIMATOR_CONSERVATIVE: VarianceEstimator
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_TARGET: StopReason
STOP_REASON_DRAW_BUDGET: StopReason
STOP_REASON_TIME_BUDGET: StopReason

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

class CreateLatentsRequest(_message.Message):
    __slots__ = ("teacher", "latents")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    latents: _tensor_pb2.Tensor
    def __init__(self, teacher: _Optional[str] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class CreateLatentsResponse(_message.Message):
    __slots__ = ("latents", "teacher_digest")
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    latents: _latents_pb2.Latents
    teacher_digest: str
    def __init__(self, latents: _Optional[_Union[_latents_pb2.Latents, _Mapping]] = ..., teacher_digest: _Optional[str] = ...) -> None: ...

class EstimateGradientRequest(_message.Message):
    __slots__ = ("teacher", "latents", "latents_handle", "objective", "sampling", "explicit_draws", "seed", "return_draws", "return_half_estimates", "priority")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_HANDLE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RETURN_DRAWS_FIELD_NUMBER: _ClassVar[int]
    RETURN_HALF_ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    latents: _tensor_pb2.Tensor
    latents_handle: str
    objective: _objective_pb2.Objective
    sampling: _sampling_pb2.Sampling
    explicit_draws: _sampling_pb2.ExplicitDraws
    seed: int
    return_draws: bool
    return_half_estimates: bool
    priority: int
    def __init__(self, teacher: _Optional[str] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., latents_handle: _Optional[str] = ..., objective: _Optional[_Union[_objective_pb2.Objective, _Mapping]] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., explicit_draws: _Optional[_Union[_sampling_pb2.ExplicitDraws, _Mapping]] = ..., seed: _Optional[int] = ..., return_draws: bool = ..., return_half_estimates: bool = ..., priority: _Optional[int] = ...) -> None: ...

class Diagnostics(_message.Message):
    __slots__ = ("variance_estimator", "noise_variance", "effective_sample_size", "past_draws")
    VARIANCE_ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    NOISE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SAMPLE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAST_DRAWS_FIELD_NUMBER: _ClassVar[int]
    variance_estimator: VarianceEstimator
    noise_variance: _tensor_pb2.Tensor
    effective_sample_size: _tensor_pb2.Tensor
    past_draws: float
    def __init__(self, variance_estimator: _Optional[_Union[VarianceEstimator, str]] = ..., noise_variance: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., effective_sample_size: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., past_draws: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("timesteps", "noise_indices", "signs", "importance_weights", "norms", "control_coefficients")
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    NOISE_INDICES_FIELD_NUMBER: _ClassVar[int]
    SIGNS_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    timesteps: _tensor_pb2.Tensor
    noise_indices: _tensor_pb2.Tensor
    signs: _tensor_pb2.Tensor
    importance_weights: _tensor_pb2.Tensor
    norms: _tensor_pb2.Tensor
    control_coefficients: _tensor_pb2.Tensor
    def __init__(self, timesteps: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., noise_indices: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., signs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., importance_weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., norms: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., control_coefficients: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EstimateGradientResponse(_message.Message):
    __slots__ = ("gradient", "diagnostics", "teacher_digest", "seed", "sampling", "draws_spent", "evaluations_spent", "timings", "draw_table", "half_estimates")
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DRAWS_SPENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_SPENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DRAW_TABLE_FIELD_NUMBER: _ClassVar[int]
    HALF_ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    gradient: _tensor_pb2.Tensor
    diagnostics: Diagnostics
    teacher_digest: str
    seed: int
    sampling: _sampling_pb2.Sampling
    draws_spent: int
    evaluations_spent: int
    timings: Timings
    draw_table: DrawTable
    half_estimates: _tensor_pb2.Tensor
    def __init__(self, gradient: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., diagnostics: _Optional[_Union[Diagnostics, _Mapping]] = ..., teacher_digest: _Optional[str] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., draws_spent: _Optional[int] = ..., evaluations_spent: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., draw_table: _Optional[_Union[DrawTable, _Mapping]] = ..., half_estimates: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class CancelGradient(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamGradientsRequest(_message.Message):
    __slots__ = ("id", "estimate", "cancel", "timeout_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    estimate: EstimateGradientRequest
    cancel: CancelGradient
    timeout_seconds: float
    def __init__(self, id: _Optional[int] = ..., estimate: _Optional[_Union[EstimateGradientRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelGradient, _Mapping]] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class StreamGradientsResponse(_message.Message):
    __slots__ = ("id", "estimate", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    estimate: EstimateGradientResponse
    error: _status_pb2.Status
    def __init__(self, id: _Optional[int] = ..., estimate: _Optional[_Union[EstimateGradientResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class PredictNoiseRequest(_message.Message):
    __slots__ = ("teacher", "conditionings", "latents", "noisy_latents", "latents_handle", "explicit_draws", "seed", "priority")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    CONDITIONINGS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    NOISY_LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_HANDLE_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    conditionings: _containers.RepeatedScalarFieldContainer[str]
    latents: _tensor_pb2.Tensor
    noisy_latents: _tensor_pb2.Tensor
    latents_handle: str
    explicit_draws: _sampling_pb2.ExplicitDraws
    seed: int
    priority: int
    def __init__(self, teacher: _Optional[str] = ..., conditionings: _Optional[_Iterable[str]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., noisy_latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., latents_handle: _Optional[str] = ..., explicit_draws: _Optional[_Union[_sampling_pb2.ExplicitDraws, _Mapping]] = ..., seed: _Optional[int] = ..., priority: _Optional[int] = ...) -> None: ...

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

class RefineGradientRequest(_message.Message):
    __slots__ = ("teacher", "latents", "latents_handle", "objective", "sampling", "seed", "target_relative_standard_error", "max_draws", "max_seconds", "priority")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_HANDLE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TARGET_RELATIVE_STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    latents: _tensor_pb2.Tensor
    latents_handle: str
    objective: _objective_pb2.Objective
    sampling: _sampling_pb2.Sampling
    seed: int
    target_relative_standard_error: float
    max_draws: int
    max_seconds: float
    priority: int
    def __init__(self, teacher: _Optional[str] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., latents_handle: _Optional[str] = ..., objective: _Optional[_Union[_objective_pb2.Objective, _Mapping]] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., target_relative_standard_error: _Optional[float] = ..., max_draws: _Optional[int] = ..., max_seconds: _Optional[float] = ..., priority: _Optional[int] = ...) -> None: ...

class RefineGradientResponse(_message.Message):
    __slots__ = ("gradient", "noise_variance", "variance_estimator", "relative_standard_error", "draws", "stop_reasons", "final", "teacher_digest", "seed", "sampling", "draws_spent", "evaluations_spent", "timings")
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    NOISE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    STOP_REASONS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DRAWS_SPENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_SPENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    gradient: _tensor_pb2.Tensor
    noise_variance: _tensor_pb2.Tensor
    variance_estimator: VarianceEstimator
    relative_standard_error: _tensor_pb2.Tensor
    draws: _tensor_pb2.Tensor
    stop_reasons: _containers.RepeatedScalarFieldContainer[StopReason]
    final: bool
    teacher_digest: str
    seed: int
    sampling: _sampling_pb2.Sampling
    draws_spent: int
    evaluations_spent: int
    timings: Timings
    def __init__(self, gradient: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., noise_variance: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., variance_estimator: _Optional[_Union[VarianceEstimator, str]] = ..., relative_standard_error: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., draws: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., stop_reasons: _Optional[_Iterable[_Union[StopReason, str]]] = ..., final: bool = ..., teacher_digest: _Optional[str] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.Sampling, _Mapping]] = ..., draws_spent: _Optional[int] = ..., evaluations_spent: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class ProfileTeacherRequest(_message.Message):
    __slots__ = ("teacher", "latents", "latents_handle", "objective", "bins", "draws_per_bin", "seed", "history", "warm", "priority")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_HANDLE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_PER_BIN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    latents: _tensor_pb2.Tensor
    latents_handle: str
    objective: _objective_pb2.Objective
    bins: int
    draws_per_bin: int
    seed: int
    history: str
    warm: bool
    priority: int
    def __init__(self, teacher: _Optional[str] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., latents_handle: _Optional[str] = ..., objective: _Optional[_Union[_objective_pb2.Objective, _Mapping]] = ..., bins: _Optional[int] = ..., draws_per_bin: _Optional[int] = ..., seed: _Optional[int] = ..., history: _Optional[str] = ..., warm: bool = ..., priority: _Optional[int] = ...) -> None: ...

class ProfileTeacherResponse(_message.Message):
    __slots__ = ("progress", "profile")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    progress: float
    profile: Profile
    def __init__(self, progress: _Optional[float] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class ProfileBin(_message.Message):
    __slots__ = ("first_timestep", "last_timestep", "log_snr", "prior_mass", "second_moment", "second_moment_error", "squared_mean", "even_second_moment", "noise_slope")
    FIRST_TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    LAST_TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    LOG_SNR_FIELD_NUMBER: _ClassVar[int]
    PRIOR_MASS_FIELD_NUMBER: _ClassVar[int]
    SECOND_MOMENT_FIELD_NUMBER: _ClassVar[int]
    SECOND_MOMENT_ERROR_FIELD_NUMBER: _ClassVar[int]
    SQUARED_MEAN_FIELD_NUMBER: _ClassVar[int]
    EVEN_SECOND_MOMENT_FIELD_NUMBER: _ClassVar[int]
    NOISE_SLOPE_FIELD_NUMBER: _ClassVar[int]
    first_timestep: int
    last_timestep: int
    log_snr: float
    prior_mass: float
    second_moment: float
    second_moment_error: float
    squared_mean: float
    even_second_moment: float
    noise_slope: float
    def __init__(self, first_timestep: _Optional[int] = ..., last_timestep: _Optional[int] = ..., log_snr: _Optional[float] = ..., prior_mass: _Optional[float] = ..., second_moment: _Optional[float] = ..., second_moment_error: _Optional[float] = ..., squared_mean: _Optional[float] = ..., even_second_moment: _Optional[float] = ..., noise_slope: _Optional[float] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("bins", "prior", "weight", "adaptive", "oracle", "past_draws", "prior_variance", "weight_variance", "oracle_variance", "squared_gradient", "evaluation_seconds", "teacher_digest", "seed", "draws_spent", "evaluations_spent")
    BINS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVE_FIELD_NUMBER: _ClassVar[int]
    ORACLE_FIELD_NUMBER: _ClassVar[int]
    PAST_DRAWS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    ORACLE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    SQUARED_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAWS_SPENT_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_SPENT_FIELD_NUMBER: _ClassVar[int]
    bins: _containers.RepeatedCompositeFieldContainer[ProfileBin]
    prior: _containers.RepeatedScalarFieldContainer[float]
    weight: _containers.RepeatedScalarFieldContainer[float]
    adaptive: _containers.RepeatedScalarFieldContainer[float]
    oracle: _containers.RepeatedScalarFieldContainer[float]
    past_draws: float
    prior_variance: float
    weight_variance: float
    oracle_variance: float
    squared_gradient: float
    evaluation_seconds: float
    teacher_digest: str
    seed: int
    draws_spent: int
    evaluations_spent: int
    def __init__(self, bins: _Optional[_Iterable[_Union[ProfileBin, _Mapping]]] = ..., prior: _Optional[_Iterable[float]] = ..., weight: _Optional[_Iterable[float]] = ..., adaptive: _Optional[_Iterable[float]] = ..., oracle: _Optional[_Iterable[float]] = ..., past_draws: _Optional[float] = ..., prior_variance: _Optional[float] = ..., weight_variance: _Optional[float] = ..., oracle_variance: _Optional[float] = ..., squared_gradient: _Optional[float] = ..., evaluation_seconds: _Optional[float] = ..., teacher_digest: _Optional[str] = ..., seed: _Optional[int] = ..., draws_spent: _Optional[int] = ..., evaluations_spent: _Optional[int] = ...) -> None: ...
