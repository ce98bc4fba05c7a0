"""Errors on their way up: an inner span fails, an outer span makes something of it."""

import asyncio
import json

from opentelemetry import trace
from telemetry import hop, truth


class CheckoutError(Exception):
    """What the outer layer raises."""


class StockError(Exception):
    """What the inner layer raises."""


MODES = (
    "kept",
    "cause",
    "context",
    "flattened",
    "json",
    "replaced",
    "swallowed",
    "retried",
    "group",
    "event_without_status",
    "status_without_event",
    "no_stack",
    "reraised_text",
)


def _reserve(mode):
    try:
        raise ConnectionError("warehouse refused the connection")
    except ConnectionError as error:
        raise StockError(f"cannot reserve item for {mode}") from error


async def climb(tracer, mode):
    """Fail below, treat the error as `mode` says, and log what the hop became."""
    if mode == "group":
        return await _group(tracer)
    if mode in ("swallowed", "retried"):
        return _survive(tracer, mode)
    inner = None
    verdict = {
        "cause": "wrapped",
        "context": "wrapped",
        "json": "flattened",
        "reraised_text": "flattened",
        "event_without_status": "status_lost",
        "status_without_event": "status_lost",
        "no_stack": "kept",
    }.get(mode, mode)
    quiet = mode in ("event_without_status", "status_without_event", "no_stack")
    try:
        with tracer.start_as_current_span(
            "place order", record_exception=not quiet, set_status_on_exception=not quiet
        ) as outer:
            with tracer.start_as_current_span("reserve") as inner:
                try:
                    _reserve(mode)
                except StockError as error:
                    inner.record_exception(error)
                    inner.set_status(trace.StatusCode.ERROR, f"StockError: {error}")
                    failure = error
            _react(outer, mode, failure)
    except (StockError, CheckoutError, RuntimeError):
        pass
    hop(inner, outer, verdict, f"python_{mode}")
    return 500


def _react(outer, mode, error):
    if mode == "kept":
        raise error
    if mode == "cause":
        raise CheckoutError("order not placed") from error
    if mode == "context":
        try:
            raise error
        except StockError:
            raise CheckoutError("order not placed")  # noqa: B904
    if mode == "flattened":
        raise CheckoutError(f"order not placed: {error}")
    if mode == "reraised_text":
        raise RuntimeError(str(error))
    if mode == "json":
        text = json.dumps({"error": type(error).__name__, "message": str(error)})
        raise RuntimeError(f"upstream said {json.loads(text)['message']}")
    if mode == "replaced":
        raise CheckoutError("something went wrong")
    if mode == "event_without_status":
        outer.record_exception(error)
    if mode == "status_without_event":
        outer.set_status(trace.StatusCode.ERROR)
    if mode == "no_stack":
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        outer.add_event("exception", {"exception.type": kind, "exception.message": str(error)})
        outer.set_status(trace.StatusCode.ERROR, str(error))


def _survive(tracer, mode):
    with tracer.start_as_current_span("place order") as outer:
        try:
            with tracer.start_as_current_span("reserve") as inner:
                raise StockError(f"cannot reserve item for {mode}")
        except StockError:
            pass
        if mode == "retried":
            with tracer.start_as_current_span("reserve") as second:
                second.set_attribute("app.attempt", 2)
            hop(inner, outer, "recovered", "python_retried")
            truth("legal", inner, parent=outer, detail="retry_that_succeeds")
        else:
            hop(inner, outer, "swallowed", "python_swallowed")
    return 200


async def _group(tracer):
    children = []

    async def part(number):
        with tracer.start_as_current_span("reserve part") as span:
            children.append(span)
            await asyncio.sleep(0.001)
            raise StockError(f"part {number} is missing")

    outer = None
    try:
        with tracer.start_as_current_span("place order") as outer:
            results = await asyncio.gather(part(1), part(2), return_exceptions=True)
            raise ExceptionGroup("order not placed", results)
    except ExceptionGroup:
        pass
    for child in children:
        hop(child, outer, "wrapped", "python_exception_group", boundary="task")
    return 500
