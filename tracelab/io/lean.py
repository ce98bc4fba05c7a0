"""Lean twins of OTLP's protobuf descriptors, for the native decoder and encoder.

The twins are derived from opentelemetry-proto's own descriptors with three changes. Text is
declared as bytes, so that one invalid name does not cost its whole message. Arrays and maps
inside an attribute are declared as bytes, so that depth costs nothing until it is there; they
are decoded level by level, again natively. The ``instrumentation_library_spans`` of OTLP
0.15 to 0.18 (field 1000) is known.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from ptars import HandlerPool

LEGACY_FIELD: Final = 1000
LEGACY_NAME: Final = "instrumentation_library_spans"

_FILES: Final = (common_pb2, resource_pb2, trace_pb2, logs_pb2, metrics_pb2)
_LEFT_OUT: Final = {"string_value_strindex", "key_strindex", "entity_refs"}
_PACKAGE: Final = "tracelab.lean"
_Field = descriptor_pb2.FieldDescriptorProto


def _lean_message(message: descriptor_pb2.DescriptorProto) -> None:
    kept = [item for item in message.field if item.name not in _LEFT_OUT]
    del message.field[:]
    message.field.extend(kept)
    for item in message.field:
        if item.type_name:
            item.type_name = item.type_name.replace(".opentelemetry.proto", f".{_PACKAGE}")
        nested = message.name == "AnyValue" and item.type == _Field.TYPE_MESSAGE
        if nested or item.type == _Field.TYPE_STRING:
            item.type = _Field.TYPE_BYTES
            item.ClearField("type_name")
    for nested_message in message.nested_type:
        _lean_message(nested_message)
    if message.name == "ResourceSpans":
        message.field.add(
            name=LEGACY_NAME,
            number=LEGACY_FIELD,
            type=_Field.TYPE_BYTES,
            label=_Field.LABEL_REPEATED,
        )
        del message.reserved_range[:]


def _lean_file(module: Any) -> descriptor_pb2.FileDescriptorProto:
    twin = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(twin)
    twin.name = twin.name.replace("opentelemetry/", "tracelab/")
    twin.package = twin.package.replace("opentelemetry.proto", _PACKAGE)
    dependencies = [name.replace("opentelemetry/", "tracelab/") for name in twin.dependency]
    del twin.dependency[:]
    twin.dependency.extend(dependencies)
    for message in twin.message_type:
        _lean_message(message)
    return twin


@cache
def _handlers() -> tuple[HandlerPool, descriptor_pool.DescriptorPool]:
    pool = descriptor_pool.DescriptorPool()
    files = []
    for module in _FILES:
        twin = _lean_file(module)
        pool.Add(twin)
        files.append(pool.FindFileByName(twin.name))
    return HandlerPool(files), pool


@cache
def handler(name: str) -> Any:
    """Return the native coder of a message, e.g. ``trace.v1.Span``."""
    handlers, pool = _handlers()
    return handlers.get_for_message(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def decoder(name: str) -> Callable[[Any], pa.RecordBatch]:
    """Return what decodes messages of one kind, e.g. ``trace.v1.Span``.

    Parameters
    ----------
    name : str
        The kind.

    Returns
    -------
    callable
        Takes a list of bytes or a binary Arrow array, and raises `ValueError` if any is broken.

    Raises
    ------
    KeyError
        If OTLP has no such message.
    """
    native = handler(name)

    def decode(messages: list[bytes] | pa.Array) -> pa.RecordBatch:
        try:
            if isinstance(messages, list):
                return native.list_to_record_batch(messages)
            return native.array_to_record_batch(messages)
        except BaseException as error:
            # A length near 2**64 wraps around and makes the native decoder panic, which is no
            # Exception and has a class of its own in each library.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the decoder gave up: {error}") from None

    return decode


@cache
def checker(name: str) -> Callable[[bytes], object]:
    """Return what tells whether one message can be decoded.

    For a single message the native decoder takes some tenths of a millisecond, however small it is;
    Google's takes microseconds. It refuses more, so that only its refusal is looked into.

    Parameters
    ----------
    name : str
        The kind.

    Returns
    -------
    callable
        Takes the message, and raises `ValueError` if it is broken.

    Raises
    ------
    KeyError
        If OTLP has no such message.
    """
    native = decoder(name)
    kind = message_factory.GetMessageClass(
        _handlers()[1].FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )

    def check(message: bytes) -> object:
        try:
            return kind.FromString(message)
        except DecodeError:
            return native([message])

    return check
