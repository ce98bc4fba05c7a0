"""Parse one million error events with ten thousand distinct stacks.

Run as ``python benchmarks/exceptions.py [events] [stacks]``. The named baseline, run in the
same process, is the loop one would write: the same parser called once per event, timed
over 20,000 events and scaled.
"""

import random
import resource
import sys
import time

import polars as pl

from tracelab import schema
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.errors_chain.stacktrace import parse_chain
from tracelab.traceset import TraceSet

TYPES = {
    "java": "com.acme.OrderException",
    "python": "app.OrderError",
    "go": "*fmt.wrapError",
    "nodejs": "TypeError",
}


def java(n):
    outer = "".join(
        f"\tat com.acme.mod{k % 7}.Svc{n % 50}.call{k}(Svc.java:{k + n % 97})\n" for k in range(40)
    )
    inner = "".join(f"\tat com.acme.db{k}.Dao.q{k}(Dao.java:{k + n % 31})\n" for k in range(15))
    cause = f"Caused by: java.sql.SQLException: reset {n}\n{inner}\t... 20 more\n"
    return f"com.acme.OrderException: order failed {n}\n{outer}{cause}"


def python(n):
    frames = "".join(f'  File "/app/m{k}.py", line {k + n}, in f{k}\n    go()\n' for k in range(20))
    head = f"Traceback (most recent call last):\n{frames}"
    join = "\nThe above exception was the direct cause of the following exception:\n\n"
    return f"{head}app.DbError: refused {n}\n{join}{head}app.OrderError: order {n}\n"


def go(n):
    frames = "".join(
        f"main.f{k}(0xc000{k:03x}, 0x{n:x})\n\t/src/f{k}.go:{k} +0x1\n" for k in range(40)
    )
    return f"goroutine {n} [running]:\n{frames}"[:2048]


def nodejs(n):
    frames = "".join(f"    at f{k} (/app/x{k}.js:{k}:{n % 80 + 1})\n" for k in range(12))
    return f"TypeError: cannot read {n}\n{frames}"


def build(events, stacks):
    makers = {"java": java, "python": python, "go": go, "nodejs": nodejs}
    languages = [list(makers)[n % 4] for n in range(stacks)]
    kinds = pl.DataFrame(
        {
            "exception_stacktrace": [makers[lang](n) for n, lang in enumerate(languages)],
            "exception_type": [TYPES[lang] for lang in languages],
            "exception_message": [f"message {n}" for n in range(stacks)],
            "sdk_language": languages,
        }
    )
    dice = random.Random(1)
    chosen = kinds[[dice.randrange(stacks) for _ in range(events)]]
    number = pl.Series(range(events)).cast(pl.String)
    rows = chosen.with_columns(
        # as a decoder leaves them: each event with bytes of its own
        pl.concat_str("exception_stacktrace", pl.lit("")),
        number.str.zfill(32).alias("trace_id"),
        number.str.zfill(16).alias("span_id"),
        pl.lit(0).alias("event_index"),
        pl.lit("exception").alias("name"),
        pl.lit("span_event").alias("origin"),
    )
    return TraceSet(
        spans=schema.conform(rows.select("trace_id", "span_id", "sdk_language"), schema.SPANS),
        events=schema.conform(rows.drop("sdk_language"), schema.EVENTS),
    )


def main():
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    stacks = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    traces = build(events, stacks)
    size = traces.events["exception_stacktrace"].str.len_bytes().sum()
    start = time.perf_counter()
    links = parse_exceptions(traces)
    ours = time.perf_counter() - start
    sample = min(events, 20_000)
    texts = traces.events["exception_stacktrace"].head(sample).to_list()
    start = time.perf_counter()
    for text in texts:
        parse_chain(text)
    loop = (time.perf_counter() - start) / sample * events
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{events:,} events, {stacks:,} distinct stacks, {size / 1e9:.2f} GB of text")
    print(f"parse_exceptions   {ours:8.2f} s   {links.height:,} links   peak {peak:.1f} GB")
    print(f"a call per event   {loop:8.2f} s   (ratio {loop / ours:.1f})")


if __name__ == "__main__":
    main()
