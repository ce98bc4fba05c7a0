"""Names of the semantic conventions that become columns, old and new spellings together.

The order of the spellings is the order of preference: the stable name first.
"""

from typing import Final

HTTP_SERVER_ERROR_MIN: Final = 500
HTTP_SERVER_ERROR_MAX: Final = 599

GRPC_SERVER_ERRORS: Final[dict[int, str]] = {
    2: "UNKNOWN",
    4: "DEADLINE_EXCEEDED",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
}
"""gRPC status codes that count as the server's fault (semantic conventions, gRPC)."""

SPAN_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "thread_id": ("thread.id",),
    "thread_name": ("thread.name",),
    "task_id": (
        "goroutine.id",
        "go.goroutine.id",
        "asyncio.task.name",
        "asyncio.task.id",
        "coroutine.name",
        "coroutine.id",
        "task.id",
        "tokio.task.id",
    ),
    "http_request_method": ("http.request.method", "http.method"),
    "http_route": ("http.route",),
    "http_response_status_code": ("http.response.status_code", "http.status_code"),
    "rpc_system": ("rpc.system.name", "rpc.system"),
    "rpc_method": ("rpc.method",),
    "messaging_system": ("messaging.system",),
    "messaging_destination": (
        "messaging.destination.name",
        "messaging.destination",
        "messaging.source.name",
        "messaging.source",
    ),
    "error_type": ("error.type",),
    "server_address": (
        "server.address",
        "net.peer.name",
        "http.server_name",
        "http.host",
        "peer.address",
        "net.peer.ip",
    ),
    "tenant_id": (
        "tenant.id",
        "tenant_id",
        "http.request.header.x-tenant-id",
        "http.request.header.x_tenant_id",
    ),
    "request_id": (
        "http.request.header.x-request-id",
        "http.request.header.x_request_id",
        "guid:x-request-id",
        "request.id",
        "request_id",
    ),
    "resend_count": ("http.request.resend_count", "http.resend_count", "retry.count"),
}
"""Lifted span columns and the attribute keys they are read from."""

RESOURCE_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "service_name": ("service.name",),
    "service_namespace": ("service.namespace",),
    "service_instance_id": ("service.instance.id",),
    "host_name": ("host.name", "k8s.node.name"),
    "process_pid": ("process.pid",),
    "sdk_language": ("telemetry.sdk.language",),
    "sdk_version": ("telemetry.sdk.version",),
}
"""Lifted columns that come from the resource."""

EXCEPTION_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "exception_type": ("exception.type", "error.type"),
    "exception_message": ("exception.message", "error.message"),
    "exception_stacktrace": ("exception.stacktrace", "error.stack"),
    "exception_escaped": ("exception.escaped",),
}
"""Lifted event columns; the second spellings are those of an old Ruby SDK, read only on
events named ``error``."""
