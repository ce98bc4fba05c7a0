"""The shop's front: FastAPI and httpx, instrumented, asyncio tasks and an executor."""

import asyncio
import contextvars
import json
import os
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx
import telemetry
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ladder import climb
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.propagate import inject
from telemetry import chance, fault, truth

tracer = telemetry.start()
pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="price")
CATALOG, STOCK, BROKER = os.environ["CATALOG"], os.environ["STOCK"], os.environ["BROKER"]
background = set()


@asynccontextmanager
async def lifespan(_app):
    HTTPXClientInstrumentor().instrument()
    async with httpx.AsyncClient(timeout=10) as client:
        _app.state.client = client
        yield
    telemetry.stop()


app = FastAPI(lifespan=lifespan)


def price(order, caller, planted):
    """Run in an executor thread."""
    with tracer.start_as_current_span("price", attributes={"app.order": order}) as span:
        if planted:
            truth(
                "detached_root",
                span,
                parent=caller,
                cause="context_not_propagated",
                boundary="thread",
                detail="executor_without_context",
            )
        with tracer.start_as_current_span("round"):
            return random.random() * 100


async def recommend(order, caller, planted):
    """Run in an asyncio task."""
    with tracer.start_as_current_span("recommend", attributes={"app.order": order}) as span:
        if planted:
            truth(
                "detached_root",
                span,
                parent=caller,
                cause="context_not_propagated",
                boundary="task",
                detail="task_with_fresh_contextvars",
            )
        await asyncio.sleep(0.004 + random.random() * 0.01)
        with tracer.start_as_current_span("rank"):
            await asyncio.sleep(0.001)


async def remember(order, caller):
    """Outlive the response on purpose: a legal fire-and-forget child."""
    await asyncio.sleep(0.15)
    with tracer.start_as_current_span("remember", attributes={"app.order": order}) as span:
        truth("legal", span, parent=caller, boundary="task", detail="fire_and_forget")
        await asyncio.sleep(0.002)


def publish(message):
    body = json.dumps(message).encode()
    urllib.request.urlopen(urllib.request.Request(BROKER, data=body, method="POST"), timeout=5)


async def notify(order):
    """Send a message, sometimes without its context, sometimes with a long delay."""
    attributes = {"messaging.system": "labq", "messaging.destination.name": "mail"}
    kind = trace.SpanKind.PRODUCER
    with tracer.start_as_current_span("send mail", kind=kind, attributes=attributes) as span:
        headers = {}
        inject(headers)
        message = {"order": order, "headers": headers, "lab_parent": headers["traceparent"]}
        if fault("queue_without_context"):
            message["headers"] = {}
        if chance(float(os.environ.get("LAB_LATE_MAIL", "0.1"))):
            message["delay"] = 2.5
            truth("legal", span, boundary="queue", detail="long_queue_delay")
        await asyncio.to_thread(publish, message)


@app.get("/checkout/{order}")
async def checkout(order: str, request: Request):
    client, server = request.app.state.client, trace.get_current_span()
    server.set_attribute("app.request.id", request.headers.get("x-request-id", ""))
    passed = {"x-request-id": request.headers.get("x-request-id", "")}
    with tracer.start_as_current_span("validate"):
        await asyncio.sleep(0.001)
    caller = trace.get_current_span()
    lost_task, lost_thread = fault("fresh_contextvars"), fault("executor_without_context")
    task = asyncio.create_task(
        recommend(order, caller, lost_task),
        context=contextvars.Context() if lost_task else None,
    )
    loop = asyncio.get_running_loop()
    run = (price,) if lost_thread else (contextvars.copy_context().run, price)
    priced = loop.run_in_executor(pool, *run, order, caller, lost_thread)
    answers = await asyncio.gather(
        client.get(f"{CATALOG}/items/{order}", headers=passed),
        client.get(f"{STOCK}/stock/{order}", headers=passed),
    )
    await asyncio.gather(task, priced)
    await notify(order)
    if chance(0.15):
        job = asyncio.create_task(remember(order, caller))
        background.add(job)
        job.add_done_callback(background.discard)
    worst = max(answer.status_code for answer in answers)
    return JSONResponse({"order": order}, status_code=502 if worst >= 500 else 200)


@app.get("/browse/{sku}")
async def browse(sku: str, request: Request):
    client = request.app.state.client
    answer = await client.get(f"{STOCK}/stock/{sku}")
    if answer.status_code == 404:
        truth("legal", trace.get_current_span(), detail="answered_404")
    return JSONResponse({"sku": sku}, status_code=answer.status_code)


@app.get("/fail/{mode}")
async def fail(mode: str):
    status = await climb(tracer, mode)
    return JSONResponse({"mode": mode}, status_code=status)


if __name__ == "__main__":
    FastAPIInstrumentor.instrument_app(app)
    uvicorn.run(app, port=int(os.environ["LAB_PORT"]), log_level="error")
