from carv.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NamedWeighting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NAMED_WEIGHTING_UNSPECIFIED: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_SDS: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_UNIFORM: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_FANTASIA3D: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_DREAMFUSION_SQRT: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_X0: _ClassVar[NamedWeighting]
    NAMED_WEIGHTING_SCORE: _ClassVar[NamedWeighting]
NAMED_WEIGHTING_UNSPECIFIED: NamedWeighting
NAMED_WEIGHTING_SDS: NamedWeighting
NAMED_WEIGHTING_UNIFORM: NamedWeighting
NAMED_WEIGHTING_FANTASIA3D: NamedWeighting
NAMED_WEIGHTING_DREAMFUSION_SQRT: NamedWeighting
NAMED_WEIGHTING_X0: NamedWeighting
NAMED_WEIGHTING_SCORE: NamedWeighting

class Coefficient(_message.Message):
    __slots__ = ("constant", "table")
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    constant: float
    table: CoefficientTable
    def __init__(self, constant: _Optional[float] = ..., table: _Optional[_Union[CoefficientTable, _Mapping]] = ...) -> None: ...

class CoefficientTable(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Branch(_message.Message):
    __slots__ = ("conditionings", "coefficient", "use_reference_latents")
    CONDITIONINGS_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    USE_REFERENCE_LATENTS_FIELD_NUMBER: _ClassVar[int]
    conditionings: _containers.RepeatedScalarFieldContainer[str]
    coefficient: Coefficient
    use_reference_latents: bool
    def __init__(self, conditionings: _Optional[_Iterable[str]] = ..., coefficient: _Optional[_Union[Coefficient, _Mapping]] = ..., use_reference_latents: bool = ...) -> None: ...

class Weighting(_message.Message):
    __slots__ = ("named", "table")
    NAMED_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    named: NamedWeighting
    table: WeightingTable
    def __init__(self, named: _Optional[_Union[NamedWeighting, str]] = ..., table: _Optional[_Union[WeightingTable, _Mapping]] = ...) -> None: ...

class WeightingTable(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class TimestepRange(_message.Message):
    __slots__ = ("min_fraction", "max_fraction")
    MIN_FRACTION_FIELD_NUMBER: _ClassVar[int]
    MAX_FRACTION_FIELD_NUMBER: _ClassVar[int]
    min_fraction: float
    max_fraction: float
    def __init__(self, min_fraction: _Optional[float] = ..., max_fraction: _Optional[float] = ...) -> None: ...

class Prior(_message.Message):
    __slots__ = ("range", "table")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    range: TimestepRange
    table: PriorTable
    def __init__(self, range: _Optional[_Union[TimestepRange, _Mapping]] = ..., table: _Optional[_Union[PriorTable, _Mapping]] = ...) -> None: ...

class PriorTable(_message.Message):
    __slots__ = ("mass",)
    MASS_FIELD_NUMBER: _ClassVar[int]
    mass: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, mass: _Optional[_Iterable[float]] = ...) -> None: ...

class Objective(_message.Message):
    __slots__ = ("branches", "noise_coefficient", "weighting", "prior", "reference_latents", "reference_latents_handle")
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    NOISE_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LATENTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_LATENTS_HANDLE_FIELD_NUMBER: _ClassVar[int]
    branches: _containers.RepeatedCompositeFieldContainer[Branch]
    noise_coefficient: Coefficient
    weighting: Weighting
    prior: Prior
    reference_latents: _tensor_pb2.Tensor
    reference_latents_handle: str
    def __init__(self, branches: _Optional[_Iterable[_Union[Branch, _Mapping]]] = ..., noise_coefficient: _Optional[_Union[Coefficient, _Mapping]] = ..., weighting: _Optional[_Union[Weighting, _Mapping]] = ..., prior: _Optional[_Union[Prior, _Mapping]] = ..., reference_latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., reference_latents_handle: _Optional[str] = ...) -> None: ...
