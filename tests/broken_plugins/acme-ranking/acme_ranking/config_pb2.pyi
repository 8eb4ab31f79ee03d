from tzrec_core.protos import loss_pb2 as _loss_pb2
from tzrec_core.protos import module_pb2 as _module_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tversky(_message.Message):
    __slots__ = ("alpha", "gamma", "beside")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    gamma: float
    beside: _loss_pb2.LossConfig
    def __init__(self, alpha: _Optional[float] = ..., gamma: _Optional[float] = ..., beside: _Optional[_Union[_loss_pb2.LossConfig, _Mapping]] = ...) -> None: ...

class Brier(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LastSteps(_message.Message):
    __slots__ = ("input", "steps", "mlp")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MLP_FIELD_NUMBER: _ClassVar[int]
    input: str
    steps: int
    mlp: _module_pb2.MLP
    def __init__(self, input: _Optional[str] = ..., steps: _Optional[int] = ..., mlp: _Optional[_Union[_module_pb2.MLP, _Mapping]] = ...) -> None: ...

class Counting(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class StopAfterRows(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...
