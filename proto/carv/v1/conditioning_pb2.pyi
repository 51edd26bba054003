import datetime

from carv.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PromptSource(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prompts: _Optional[_Iterable[str]] = ...) -> None: ...

class ClassSource(_message.Message):
    __slots__ = ("class_ids",)
    CLASS_IDS_FIELD_NUMBER: _ClassVar[int]
    class_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, class_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class UnconditionalSource(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TensorSource(_message.Message):
    __slots__ = ("tensors",)
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.MessageMap[str, _tensor_pb2.Tensor]
    def __init__(self, tensors: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ...) -> None: ...

class BlendSource(_message.Message):
    __slots__ = ("handles", "weights")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[str]
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, handles: _Optional[_Iterable[str]] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class ConditioningSource(_message.Message):
    __slots__ = ("prompts", "classes", "unconditional", "tensors", "blend")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    UNCONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    prompts: PromptSource
    classes: ClassSource
    unconditional: UnconditionalSource
    tensors: TensorSource
    blend: BlendSource
    def __init__(self, prompts: _Optional[_Union[PromptSource, _Mapping]] = ..., classes: _Optional[_Union[ClassSource, _Mapping]] = ..., unconditional: _Optional[_Union[UnconditionalSource, _Mapping]] = ..., tensors: _Optional[_Union[TensorSource, _Mapping]] = ..., blend: _Optional[_Union[BlendSource, _Mapping]] = ...) -> None: ...

class Conditioning(_message.Message):
    __slots__ = ("handle", "expire_time")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    handle: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, handle: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
