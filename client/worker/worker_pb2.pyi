from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("payload", "content", "settings", "client_id", "partition_id", "num_partitions", "secure")
    class Content(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PLAN: _ClassVar[Request.Content]
        PART: _ClassVar[Request.Content]
        REBUILD: _ClassVar[Request.Content]
        LOOK: _ClassVar[Request.Content]
    PLAN: Request.Content
    PART: Request.Content
    REBUILD: Request.Content
    LOOK: Request.Content
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    content: Request.Content
    settings: str
    client_id: int
    partition_id: int
    num_partitions: int
    secure: bytes
    def __init__(self, payload: _Optional[bytes] = ..., content: _Optional[_Union[Request.Content, str]] = ..., settings: _Optional[str] = ..., client_id: _Optional[int] = ..., partition_id: _Optional[int] = ..., num_partitions: _Optional[int] = ..., secure: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("server_round", "step", "steps", "loss", "queries_per_second", "seconds_left", "kind", "word")
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    server_round: int
    step: int
    steps: int
    loss: float
    queries_per_second: float
    seconds_left: float
    kind: str
    word: str
    def __init__(self, server_round: _Optional[int] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., queries_per_second: _Optional[float] = ..., seconds_left: _Optional[float] = ..., kind: _Optional[str] = ..., word: _Optional[str] = ...) -> None: ...

class Busy(_message.Message):
    __slots__ = ("seconds_left", "reply", "word")
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    seconds_left: float
    reply: bytes
    word: str
    def __init__(self, seconds_left: _Optional[float] = ..., reply: _Optional[bytes] = ..., word: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("progress", "busy", "reply")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    busy: Busy
    reply: bytes
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., busy: _Optional[_Union[Busy, _Mapping]] = ..., reply: _Optional[bytes] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ("hello",)
    HELLO_FIELD_NUMBER: _ClassVar[int]
    hello: Request
    def __init__(self, hello: _Optional[_Union[Request, _Mapping]] = ...) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("status", "hello")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    status: str
    hello: bytes
    def __init__(self, status: _Optional[str] = ..., hello: _Optional[bytes] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ("cancelled", "word")
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    word: str
    def __init__(self, cancelled: bool = ..., word: _Optional[str] = ...) -> None: ...
