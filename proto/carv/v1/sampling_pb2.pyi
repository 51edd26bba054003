from carv.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TimestepSampler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIMESTEP_SAMPLER_UNSPECIFIED: _ClassVar[TimestepSampler]
    TIMESTEP_SAMPLER_IID: _ClassVar[TimestepSampler]
    TIMESTEP_SAMPLER_STRATIFIED: _ClassVar[TimestepSampler]
    TIMESTEP_SAMPLER_GLOBAL: _ClassVar[TimestepSampler]
    TIMESTEP_SAMPLER_NESTED: _ClassVar[TimestepSampler]

class Proposal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROPOSAL_UNSPECIFIED: _ClassVar[Proposal]
    PROPOSAL_PRIOR: _ClassVar[Proposal]
    PROPOSAL_WEIGHT: _ClassVar[Proposal]
    PROPOSAL_ADAPTIVE: _ClassVar[Proposal]

class NoiseCoupling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOISE_COUPLING_UNSPECIFIED: _ClassVar[NoiseCoupling]
    NOISE_COUPLING_IID: _ClassVar[NoiseCoupling]
    NOISE_COUPLING_ANTITHETIC: _ClassVar[NoiseCoupling]

class ControlVariate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTROL_VARIATE_UNSPECIFIED: _ClassVar[ControlVariate]
    CONTROL_VARIATE_NONE: _ClassVar[ControlVariate]
    CONTROL_VARIATE_NOISE: _ClassVar[ControlVariate]
TIMESTEP_SAMPLER_UNSPECIFIED: TimestepSampler
TIMESTEP_SAMPLER_IID: TimestepSampler
TIMESTEP_SAMPLER_STRATIFIED: TimestepSampler
TIMESTEP_SAMPLER_GLOBAL: TimestepSampler
TIMESTEP_SAMPLER_NESTED: TimestepSampler
PROPOSAL_UNSPECIFIED: Proposal
PROPOSAL_PRIOR: Proposal
PROPOSAL_WEIGHT: Proposal
PROPOSAL_ADAPTIVE: Proposal
NOISE_COUPLING_UNSPECIFIED: NoiseCoupling
NOISE_COUPLING_IID: NoiseCoupling
NOISE_COUPLING_ANTITHETIC: NoiseCoupling
CONTROL_VARIATE_UNSPECIFIED: ControlVariate
CONTROL_VARIATE_NONE: ControlVariate
CONTROL_VARIATE_NOISE: ControlVariate

class Sampling(_message.Message):
    __slots__ = ("timestep_sampler", "proposal", "noise_coupling", "draws", "history", "control_variate")
    TIMESTEP_SAMPLER_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    NOISE_COUPLING_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONTROL_VARIATE_FIELD_NUMBER: _ClassVar[int]
    timestep_sampler: TimestepSampler
    proposal: Proposal
    noise_coupling: NoiseCoupling
    draws: int
    history: str
    control_variate: ControlVariate
    def __init__(self, timestep_sampler: _Optional[_Union[TimestepSampler, str]] = ..., proposal: _Optional[_Union[Proposal, str]] = ..., noise_coupling: _Optional[_Union[NoiseCoupling, str]] = ..., draws: _Optional[int] = ..., history: _Optional[str] = ..., control_variate: _Optional[_Union[ControlVariate, str]] = ...) -> None: ...

class ExplicitDraws(_message.Message):
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
