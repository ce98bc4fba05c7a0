"""Exports to a store, end to end, beside the loops a competent user would write.

Each line is measured in one process order on the same file: the baseline, then tracelab in one
process and in one per core. Ratios count; absolute figures change with the machine.

    python benchmarks/store.py --spans 500000 [--encoding proto|json|both]
"""

import argparse
import base64
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

FRAME = 4


def loop_over_protobuf(path, out):
    """Per-span loop over opentelemetry-proto: every SPANS and EVENTS column, then Parquet."""
    import polars as pl
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

    from tracelab import schema, semconv

    kinds = {value: name.removeprefix("SPAN_KIND_") for name, value in Span.SpanKind.items()}
    statuses = ("UNSET", "OK", "ERROR")
    lift_span = [(c, keys) for c, keys in semconv.SPAN_ATTRIBUTES.items()]
    lift_resource = [(c, keys) for c, keys in semconv.RESOURCE_ATTRIBUTES.items()]
    names = schema.SPANS.names()
    spans = {name: [] for name in names}
    events = {name: [] for name in schema.EVENTS.names()}
    integers = {name for name, dtype in schema.SPANS.items() if dtype == pl.Int64}

    def value_of(value):
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [value_of(each) for each in value.array_value.values]
        if kind == "kvlist_value":
            return {each.key: value_of(each.value) for each in value.kvlist_value.values}
        if kind == "bytes_value":
            return {"bytes": base64.b64encode(value.bytes_value).decode()}
        return getattr(value, kind) if kind else None

    def attributes_of(pairs):
        return {pair.key: value_of(pair.value) for pair in pairs}

    def first(attributes, keys, as_integer):
        for key in keys:
            found = attributes.get(key)
            if found is not None:
                return found if as_integer == isinstance(found, int) else None
        return None

    data = Path(path).read_bytes()
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + FRAME], "big")
        request = TracesData.FromString(data[place + FRAME : place + FRAME + size])
        place += FRAME + size
        for resource_spans in request.resource_spans:
            of_resource = attributes_of(resource_spans.resource.attributes)
            resource_text = json.dumps(of_resource)
            resource_row = {
                column: first(of_resource, keys, column in integers)
                for column, keys in lift_resource
            }
            for scope_spans in resource_spans.scope_spans:
                scope = scope_spans.scope
                shared = {
                    **resource_row,
                    "scope_name": scope.name,
                    "scope_version": scope.version,
                    "resource_attributes": resource_text,
                    "scope_attributes": json.dumps(attributes_of(scope.attributes)),
                    "resource_dropped_attributes_count": (
                        resource_spans.resource.dropped_attributes_count
                    ),
                    "scope_dropped_attributes_count": scope.dropped_attributes_count,
                    "source": str(path),
                    "resource_schema_url": resource_spans.schema_url,
                    "scope_schema_url": scope_spans.schema_url,
                }
                for span in scope_spans.spans:
                    attributes = attributes_of(span.attributes)
                    trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
                    row = {
                        **shared,
                        "trace_id": trace_id,
                        "span_id": span_id,
                        "parent_span_id": span.parent_span_id.hex() or None,
                        "trace_state": span.trace_state,
                        "flags": span.flags,
                        "parent_is_remote": (
                            bool(span.flags & 0x200) if span.flags & 0x100 else None
                        ),
                        "name": span.name,
                        "kind": kinds.get(span.kind),
                        "start_time": span.start_time_unix_nano,
                        "end_time": span.end_time_unix_nano,
                        "duration_ns": span.end_time_unix_nano - span.start_time_unix_nano,
                        "status_code": statuses[span.status.code],
                        "status_message": span.status.message,
                        "attributes": json.dumps(attributes),
                        "dropped_attributes_count": span.dropped_attributes_count,
                        "dropped_events_count": span.dropped_events_count,
                        "dropped_links_count": span.dropped_links_count,
                    }
                    for column, keys in lift_span:
                        row[column] = first(attributes, keys, column in integers)
                    for name in names:
                        spans[name].append(row.get(name))
                    for number, event in enumerate(span.events):
                        of_event = attributes_of(event.attributes)
                        row = {
                            "trace_id": trace_id,
                            "span_id": span_id,
                            "event_index": number,
                            "time": event.time_unix_nano,
                            "name": event.name,
                            "exception_type": of_event.get("exception.type"),
                            "exception_message": of_event.get("exception.message"),
                            "exception_stacktrace": of_event.get("exception.stacktrace"),
                            "attributes": json.dumps(of_event),
                            "dropped_attributes_count": event.dropped_attributes_count,
                            "origin": "span_event",
                        }
                        for name in schema.EVENTS.names():
                            events[name].append(row.get(name))
    for name, rows, wanted in (("spans", spans, schema.SPANS), ("events", events, schema.EVENTS)):
        table = pl.DataFrame(rows, schema=wanted, strict=False)
        table.write_parquet(Path(out) / f"{name}.parquet", compression="zstd")
    return len(spans["name"])


def bare_json_parse(path, out):
    """pyarrow.json over the file with its explicit schema, the result dropped."""
    import pyarrow as pa
    import pyarrow.json as pj

    value = pa.struct(
        [(name, pa.string()) for name in ("stringValue", "intValue")]
        + [("boolValue", pa.bool_()), ("doubleValue", pa.float64())]
    )
    pairs = pa.list_(pa.struct([("key", pa.string()), ("value", value)]))
    texts = ("traceId", "spanId", "parentSpanId", "name", "traceState")
    times = ("startTimeUnixNano", "endTimeUnixNano")
    event = pa.struct([("timeUnixNano", pa.string()), ("name", pa.string()), ("attributes", pairs)])
    link = pa.struct([("traceId", pa.string()), ("spanId", pa.string()), ("attributes", pairs)])
    span = pa.struct(
        [(name, pa.string()) for name in (*texts, *times)]
        + [("kind", pa.int32()), ("flags", pa.uint32()), ("attributes", pairs)]
        + [("events", pa.list_(event)), ("links", pa.list_(link))]
        + [("status", pa.struct([("code", pa.int32()), ("message", pa.string())]))]
    )
    scope = pa.struct([("name", pa.string()), ("version", pa.string())])
    scopes = pa.list_(pa.struct([("scope", scope), ("spans", pa.list_(span))]))
    of_resource = pa.struct(
        [("resource", pa.struct([("attributes", pairs)])), ("scopeSpans", scopes)]
    )
    wanted = pa.schema([("resourceSpans", pa.list_(of_resource))])
    table = pj.read_json(
        path,
        read_options=pj.ReadOptions(block_size=4 << 20),
        parse_options=pj.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
    )
    return sum(
        len(batch.column(0).flatten().field("scopeSpans").flatten().field("spans").flatten())
        for batch in table.to_batches()
    )


def into_store(path, out, workers):
    """tracelab: file to store."""
    from tracelab.store import TraceStore

    accounting = TraceStore(Path(out) / "store").ingest(path, workers=workers)
    return int(accounting["spans_decoded"].sum())


def one_worker(path, out):
    return into_store(path, out, 1)


def two_workers(path, out):
    return into_store(path, out, 2)


def _measured(function, path, answers):
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        count = function(path, out)
        seconds = time.perf_counter() - begun
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    answers.put((count, seconds, cpu, own.ru_maxrss // 1024, children.ru_maxrss // 1024))


def measure(function, path):
    """Run once in a process of its own, so that peaks of memory do not mix."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_measured, args=(function, path, answers))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{function.__name__} failed")
    return answers.get()


def compare(path, baseline, label):
    best = {}
    for function in (baseline, one_worker, two_workers) * 2:
        count, seconds, cpu, own, children = measure(function, path)
        rate = count / seconds
        best[function] = max(best.get(function, 0.0), rate)
        print(
            f"{label:5} {function.__name__:18} {count:>10,} spans {seconds:7.2f} s "
            f"({cpu:.2f} s of CPU) {rate:>10,.0f} spans/s  {rate / best[baseline]:5.2f} x  "
            f"peak {own:,} MB + {children:,} MB per worker",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, default=500_000)
    parser.add_argument("--encoding", choices=("proto", "json", "both"), default="both")
    arguments = parser.parse_args()
    from tracelab.synth import write_synthetic

    with tempfile.TemporaryDirectory() as folder:
        if arguments.encoding != "json":
            path = Path(folder) / "capture.pb"
            write_synthetic(path, seed=1, spans=arguments.spans)
            print(f"{path.stat().st_size / 1e6:.0f} MB protobuf")
            compare(str(path), loop_over_protobuf, "proto")
        if arguments.encoding != "proto":
            path = Path(folder) / "capture.jsonl"
            write_synthetic(path, seed=1, spans=arguments.spans, encoding="json")
            print(f"{path.stat().st_size / 1e6:.0f} MB JSON lines")
            compare(str(path), bare_json_parse, "json")


if __name__ == "__main__":
    main()
