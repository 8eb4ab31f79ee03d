from tzrec_core.protos import module_pb2 as _module_pb2
from tzrec_core.protos import tower_pb2 as _tower_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TwoTasks(_message.Message):
    __slots__ = ("shared", "task_towers")
    SHARED_FIELD_NUMBER: _ClassVar[int]
    TASK_TOWERS_FIELD_NUMBER: _ClassVar[int]
    shared: _module_pb2.MLP
    task_towers: _containers.RepeatedCompositeFieldContainer[_tower_pb2.TaskTower]
    def __init__(self, shared: _Optional[_Union[_module_pb2.MLP, _Mapping]] = ..., task_towers: _Optional[_Iterable[_Union[_tower_pb2.TaskTower, _Mapping]]] = ...) -> None: ...

class TwoTowers(_message.Message):
    __slots__ = ("user_tower", "item_tower", "side_towers")
    USER_TOWER_FIELD_NUMBER: _ClassVar[int]
    ITEM_TOWER_FIELD_NUMBER: _ClassVar[int]
    SIDE_TOWERS_FIELD_NUMBER: _ClassVar[int]
    user_tower: _tower_pb2.Tower
    item_tower: _tower_pb2.Tower
    side_towers: _containers.RepeatedCompositeFieldContainer[_tower_pb2.Tower]
    def __init__(self, user_tower: _Optional[_Union[_tower_pb2.Tower, _Mapping]] = ..., item_tower: _Optional[_Union[_tower_pb2.Tower, _Mapping]] = ..., side_towers: _Optional[_Iterable[_Union[_tower_pb2.Tower, _Mapping]]] = ...) -> None: ...
