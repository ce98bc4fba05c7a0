"""Parse one million error events; match goroutines; what three generations of Go record.

``python benchmarks/exceptions.py [events] [stacks]`` parses. The named baseline, run in the
same process, is the loop one would write: the same parser called once per event, timed
over 20,000 events and scaled. ``--goroutines FOLDER...`` scores the matches of goroutines in
folders that ``python -m tests.lab.hanging`` made, ``--generations CAPTURE...`` prints one
table of what each generation of Go's SDK recorded and what tracelab says of it, and
``--headers CAPTURE...`` scores what became of headers in captures with ``headers.jsonl.gz``.
"""

import argparse
import json
import random
import resource
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from tracelab import schema
from tracelab.audits import audit_headers, find_mixed_tenants, find_retry_groups
from tracelab.errors_chain import (
    audit_errors,
    find_error_hops,
    match_goroutines,
    parse_exceptions,
)
from tracelab.errors_chain.stacktrace import parse_chain
from tracelab.io import read_traces
from tracelab.io.goroutines import read_goroutine_profile
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


def measure_parsing(events, stacks):
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


def place(folder, name):
    return next(path for path in (folder / name, folder / f"{name}.gz") if path.is_file())


def working_for(traces, service, taken, never):
    """Span by goroutine: the innermost that was open on it, or who waits for it for ever."""
    stamp = pl.lit(taken).cast(schema.TIME)
    spans = traces.spans.filter(
        pl.col("service_name") == service,
        pl.col("start_time") <= stamp,
        pl.col("end_time") >= stamp,
        pl.col("task_id").is_not_null(),
    ).sort("start_time")
    open_then = spans.unique("task_id", keep="last")
    right = {int(g): span for g, span in open_then.select("task_id", "span_id").iter_rows()}
    return right | {f["goroutine"]: f["caller"] for f in never if f["service_name"] == service}


def first_candidates(traces, profile, taken, service):
    found = match_goroutines(traces, profile, time=taken, service=service)
    return {
        row["goroutine"]: row["span_id"]
        for row in found.filter(pl.col("candidate") == 1).iter_rows(named=True)
    }


def score_profiles(folder, score):
    """Count right first candidates, with and without ids and the time of the profile."""
    truth = json.loads((folder / "truth.json").read_text())
    capture = next(p for p in folder.iterdir() if p.name.startswith("traces."))
    traces = read_traces(str(capture))
    bare = traces.with_tables(
        spans=traces.spans.with_columns(pl.lit(None, pl.String).alias("task_id"))
    )
    for service in ("desk", "backend"):
        taken = datetime.fromtimestamp(truth["taken"][f"{service}-debug2.txt"] / 1e9, tz=UTC)
        right = working_for(traces, service, taken, truth["never"])
        whole = read_goroutine_profile(place(folder, f"{service}-debug2.txt"))
        alike = defaultdict(set)
        for row in whole.iter_rows(named=True):
            if row["goroutine_id"] in right:
                alike[tuple(row["functions"])].add(right[row["goroutine_id"]])
        for debug in (1, 2):
            profile = read_goroutine_profile(place(folder, f"{service}-debug{debug}.txt"))
            for ids, capture in (("ids", traces), ("no ids", bare)):
                for told in (True, False):
                    best = first_candidates(capture, profile, taken if told else None, service)
                    key = (f"debug={debug}", ids, "time told" if told else "time inferred")
                    for number, row in enumerate(profile.iter_rows(named=True)):
                        kind = alike.get(tuple(row["functions"]))
                        if kind is None or (debug == 2 and row["goroutine_id"] not in right):
                            continue
                        wanted = {right[row["goroutine_id"]]} if debug == 2 else kind
                        score[*key, "n"] += 1
                        score[*key, "right"] += best.get(number) in wanted
                        score[*key, "of its kind"] += best.get(number) in kind
    score_panics(folder, traces, bare, score)


def score_panics(folder, traces, bare, score):
    raised = traces.events.filter(pl.col("exception_message").is_not_null())["span_id"]
    spans = traces.spans.filter(
        pl.col("name") == "split invoice", pl.col("span_id").is_in(raised.implode())
    )
    right = {int(g): span for g, span in spans.select("task_id", "span_id").iter_rows()}
    profile = read_goroutine_profile(place(folder, "desk-panics.log"))
    for ids, capture in (("ids", traces), ("no ids", bare)):
        best = first_candidates(capture, profile, None, "desk")
        for number, goroutine in enumerate(profile["goroutine_id"]):
            score["panics", ids, "", "n"] += 1
            score["panics", ids, "", "right"] += best.get(number) == right[goroutine]
            score["panics", ids, "", "of its kind"] += best.get(number) in right.values()


def score_goroutines(folders):
    score = Counter()
    for folder in folders:
        score_profiles(folder, score)
    print("| profile | ids on spans | time | goroutines | right span first | one of its kind |")
    print("|---|---|---|---|---|---|")
    for key in sorted({key[:3] for key in score}):
        n = score[*key, "n"]
        shares = (f"{score[*key, what] / n:.3f}" for what in ("right", "of its kind"))
        print(f"| {' | '.join((*key, str(n), *shares))} |")


CASES = {
    "go_panic_through": "panic, nobody recovers",
    "go_panic_recovered": "panic, a middleware recovers",
    "go_wrap_w": "fmt.Errorf with %w",
    "go_wrap_v": "fmt.Errorf with %v",
    "go_json": "JSON round trip of the text",
    "go_json_empty": "json.Marshal of the error",
    "go_join": "errors.Join",
    "go_kept": "the same error recorded again",
    "go_kept_with_stack": "the same, WithStackTrace",
    "go_replaced": "another error in its place",
    "go_swallowed": "nothing recorded above",
    "go_retried": "a second attempt succeeds",
    "go_event_without_status": "RecordError alone",
    "go_status_without_event": "SetStatus alone",
    "answered_403": "a middleware answers 403",
}


def tell_generations(captures):
    """Print what each generation recorded of each case, and what tracelab says.

    Generations that recorded the same, and of which the same is said, share a row.
    """
    table = pl.concat([told for capture in captures for told in _cases(Path(capture))])
    generations = sorted(table["sdk"].unique(), key=lambda text: [*map(int, text.split("."))])
    print(f"| case | n with otel {' / '.join(generations)} | recorded above | hop | audit |")
    print("|---|---|---|---|---|")
    told = ["recorded", "said", "audit"]
    for detail, case in CASES.items():
        found = table.filter(pl.col("detail") == detail)
        for row in found.group_by(told).agg(pl.col("sdk")).sort(told).iter_rows(named=True):
            counts = Counter(row["sdk"])
            n = " / ".join(str(counts[sdk]) for sdk in generations)
            cells = (row[name] or "none" for name in told)
            print(f"| {case} | {n} | {' | '.join(cells)} |")


def _cases(folder):
    """One row per planted case: what stands on the span that should tell of the error."""
    traces = read_traces(str(folder))
    truth = pl.read_ndjson(folder / "truth.jsonl.gz", infer_schema_length=None).filter(
        pl.col("detail").is_in(list(CASES)), "observable"
    )
    exceptions = parse_exceptions(traces)
    hops = find_error_hops(traces, exceptions=exceptions)
    audit = audit_errors(traces, exceptions=exceptions)
    origin = pl.col("detail").is_in(["go_panic_through", "go_panic_recovered", "answered_403"])
    truth = truth.with_columns(
        pl.when(origin).then("span_id").otherwise("true_parent_span_id").alias("upper")
    )
    heads = exceptions.filter(pl.col("position") == 0).unique(["trace_id", "span_id"], keep="last")
    upper = (
        traces.spans.join(heads, on=["trace_id", "span_id"], how="left")
        .join(
            traces.events.filter(pl.col("exception_stacktrace").is_not_null())
            .select("trace_id", "span_id", stack=pl.lit(", a stack"))
            .unique(),
            on=["trace_id", "span_id"],
            how="left",
        )
        .select(
            pl.col("span_id").alias("upper"),
            pl.col("sdk_version").alias("sdk"),
            pl.concat_str(
                pl.lit("status "),
                pl.col("status_code").fill_null("UNSET"),
                pl.when(pl.col("http_response_status_code").is_not_null())
                .then(pl.format(", HTTP {}", "http_response_status_code"))
                .otherwise(pl.lit("")),
                pl.when(pl.col("type").is_not_null())
                .then(pl.format(", event `{}`", "type"))
                .otherwise(pl.lit(", no event")),
                pl.col("stack").fill_null(""),
            ).alias("recorded"),
        )
    )
    verdicts = hops.filter(pl.col("hop") == 0).select(
        pl.col("child_span_id").alias("span_id"), pl.col("verdict").alias("said")
    )
    signs = audit.select(
        pl.col("span_id").alias("upper"),
        pl.concat_str(
            pl.coalesce("signature", pl.lit("")),
            *(
                pl.when(~pl.col(part)).then(pl.lit(f" lacks {part[:-3]}")).otherwise(pl.lit(""))
                for part in ("status_ok", "exception_ok", "stacktrace_ok", "error_type_ok")
            ),
        )
        .str.strip_chars()
        .replace("", "complete")
        .alias("audit"),
    )
    yield (
        truth.select("detail", "span_id", "upper")
        .join(upper, on="upper", how="inner")
        .join(verdicts, on="span_id", how="left")
        .join(signs.unique("upper", keep="first"), on="upper", how="left")
        .with_columns(pl.col("audit").fill_null("no error"))
    )


def score_headers(captures):
    """Hold every judged hop against what the services say they were sent and received."""
    score = Counter()
    for folder in captures:
        traces = read_traces(str(folder))
        truth = pl.read_ndjson(folder / "headers.jsonl.gz", infer_schema_length=None)
        told = audit_headers(traces).select(
            "key", "trace_id", pl.col("child_span_id").alias("span_id"), said="verdict"
        )
        judged = truth.filter("observable").join(
            told, on=["key", "trace_id", "span_id"], how="left"
        )
        for row in judged.iter_rows(named=True):
            shown = "shows it" if row["evidence_present"] else "does not show it"
            score[row["key"], row["verdict"], shown, row["said"] or "no row"] += 1
        score["retry groups", "", "", ""] += find_retry_groups(traces).height
        score["mixed tenants", "", "", ""] += find_mixed_tenants(traces).height
    print("| header | what happened | the sender's span | said | hops |")
    print("|---|---|---|---|---|")
    for key, n in sorted(score.items()):
        print(f"| {' | '.join(key)} | {n} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int, nargs="?", default=1_000_000)
    parser.add_argument("stacks", type=int, nargs="?", default=10_000)
    parser.add_argument("--goroutines", type=Path, nargs="+")
    parser.add_argument("--generations", type=Path, nargs="+")
    parser.add_argument("--headers", type=Path, nargs="+")
    chosen = parser.parse_args()
    if chosen.goroutines:
        score_goroutines(chosen.goroutines)
    elif chosen.headers:
        score_headers(chosen.headers)
    elif chosen.generations:
        tell_generations(chosen.generations)
    else:
        measure_parsing(chosen.events, chosen.stacks)


if __name__ == "__main__":
    main()
