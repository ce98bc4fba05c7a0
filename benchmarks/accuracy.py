"""Measure breaks and error hops against planted truth, beside plain id matching.

Run over fresh seeds, the lab's captures and, where they are at hand, public ones::

    python benchmarks/accuracy.py                 # three sets of ten seeds
    python benchmarks/accuracy.py --quick         # two small seeds
    python benchmarks/accuracy.py --json out.json

How a verdict meets the truth:

- A break hits a truth row if it names the same span of the same trace, or the same missing
  span, and the kinds agree. Orphans have one row each, so an orphan's row is hit only by a
  break at that very span. What a sampler dropped may be called an orphan, a missing server
  or a sampling gap, with the cause telling. A cycle is hit by any break of kind
  ``parent_cycle`` in its trace, a skewed clock by any ``clock_skew`` of the same services.
- A call reported as a missing server whose true server is the detached root or the orphan's
  ancestor of another row is a cascade of that row: welcome, and no claim of its own.
- Recall counts observable rows but those marked ``cascade`` (a call whose lost server also left
  orphans): finding them is right, missing them no miss. Recall over all rows stands beside it.
- Precision counts every break of severity warning or error, and kinds that are planted here
  whatever their severity (clock skew, truncated values). Where nothing was planted it is a false
  alarm, in the lab's runs as well.
- A cause or boundary is right, wrong, or unknown; only rows with evidence count against
  unknown. Where the other side of a hop was lost, its host is not in the export: ``process``
  and ``network`` are both right then. Boundaries of clock skews are not counted: such a row is
  hit by any call between the two services, whatever its way.
- Exact duplicates in a file are the loader's to drop and to count; they are compared with
  its count. Legal rows must draw no warning and no error.
- Error hops are scored by the child's trace and span id over the hops that the truth lists, in
  the lab a sample; verdicts that no SDK can tell are counted apart.
"""

import argparse
import gzip
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import tracelab as tl
from tracelab import schema
from tracelab.synth import (
    DEFAULT_RATES,
    inject_breaks,
    inject_errors,
    synthesize_traces,
    write_synthetic,
)
from tracelab.traceset import TraceSet

ONCE_WRONG = (5, 591926740, 989945341)
"""Seeds whose clean captures drew false alarms; they stay, so that this is seen to end."""
ROOT = Path(__file__).resolve().parent.parent
LOSSES = ["orphan_span", "missing_server", "sampling_gap"]
AFAR = ["process", "network"]
KEY = ["trace_id", "span_id"]
BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.01)


@dataclass
class Tally:
    """Counts of one set of captures."""

    found: list[pl.DataFrame] = field(default_factory=list)
    truth: list[pl.DataFrame] = field(default_factory=list)
    hops: list[pl.DataFrame] = field(default_factory=list)
    extra_hops: int = 0
    cascades: int = 0
    spans: int = 0
    captures: int = 0
    seconds: float = 0.0


def wilson(hits: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    if not n:
        return 0.0, 1.0
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(hits: float, n: float) -> str:
    """Write a share with its interval and counts."""
    if not n:
        return "–"
    low, high = wilson(hits, n)
    return f"{hits / n:.3f} [{low:.3f}, {high:.3f}] ({int(hits)}/{int(n)})"


def match_by_ids(traces: TraceSet) -> pl.DataFrame:
    """Find what peers find: parents that are not there, ids that stand twice."""
    spans = traces.spans
    present = spans.select("trace_id", pl.col("span_id").alias("parent_span_id")).unique()
    orphans = spans.filter(pl.col("parent_span_id").is_not_null()).join(
        present, on=["trace_id", "parent_span_id"], how="anti"
    )
    twice = spans.filter(pl.struct(KEY).is_duplicated()).unique(KEY)
    table = pl.concat(
        [
            orphans.select(
                *KEY, kind=pl.lit("orphan_span"), missing_span_id=pl.col("parent_span_id")
            ),
            twice.select(
                *KEY, kind=pl.lit("duplicate_span_id"), missing_span_id=pl.lit(None, pl.String)
            ),
        ]
    ).with_columns(
        cause=pl.lit("unknown"),
        boundary=pl.lit("unknown"),
        severity=pl.lit("warning"),
        confidence=pl.lit(1.0),
    )
    return schema.conform(table, schema.BREAKS)


def judge(found: pl.DataFrame, truth: pl.DataFrame, case: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pair breaks with truth rows; return both with what became of them."""
    found = found.with_row_index("f").with_columns(case=pl.lit(case))
    truth = truth.with_row_index("t").with_columns(case=pl.lit(case))
    real = truth.filter(~pl.col("kind").is_in(["legal", "error_hop"]))
    by_span = real.filter(pl.col("span_id").is_not_null()).join(
        found, on=KEY, how="inner", suffix="_found"
    )
    by_missing = real.filter(pl.col("missing_span_id").is_not_null()).join(
        found, on=["trace_id", "missing_span_id"], how="inner", suffix="_found"
    )
    orphans = (pl.col("kind") == "orphan_span") & (pl.col("kind_found") == "orphan_span")
    by_missing = by_missing.filter(~orphans | pl.col("span_id").is_null())
    skewed = real.filter(pl.col("kind") == "clock_skew")
    skews = found.filter(pl.col("kind") == "clock_skew").sort("confidence", descending=True)
    # Any row of a service meets any other: one partner for each is enough, all would be squares.
    skew = pl.concat(
        one.join(
            other,
            left_on="service_name",
            right_on="to_service",
            how="inner",
            suffix="_found",
        )
        for one, other in (
            (skewed, skews.unique("to_service", keep="first", maintain_order=True)),
            (skewed.unique("service_name", keep="first", maintain_order=True), skews),
        )
    )
    cycles = real.filter(pl.col("kind") == "parent_cycle").join(
        found.filter(pl.col("kind") == "parent_cycle"), on="trace_id", how="inner", suffix="_found"
    )
    columns = ["t", "f", "kind", "kind_found"]
    pairs = (
        pl.concat(
            part.select(columns).with_columns(rank=pl.lit(rank))
            for rank, part in enumerate((by_span, by_missing, skew, cycles))
        )
        .sort("rank")
        .unique(["t", "f"], keep="first", maintain_order=True)
    )
    sampled = real.filter(pl.col("cause") == "sampled_out")["t"].implode()
    agree = (pl.col("kind") == pl.col("kind_found")) | (
        pl.col("t").is_in(sampled)
        & pl.col("kind_found").is_in(LOSSES)
        & pl.col("kind").is_in(LOSSES)
    )
    pairs = pairs.with_columns(agree=agree)
    facts = found.select(
        "f", "cause", "boundary", "confidence", "proposed_span_id", "proposed_confidence"
    ).rename(lambda name: name if name == "f" else f"found_{name}")
    best = (
        pairs.filter("agree")
        .join(facts, on="f")
        .sort("t", "rank", "found_confidence", descending=[False, False, True])
        .unique("t", keep="first", maintain_order=True)
    )
    other = pairs.filter(~pl.col("agree")).unique("t", keep="first").select("t", "kind_found")
    told = (
        real.join(best.drop("kind", "kind_found", "agree", "rank"), on="t", how="left")
        .join(other.rename({"kind_found": "called"}), on="t", how="left")
        .with_columns(hit=pl.col("f").is_not_null())
    )
    right_cause = (
        pairs.filter("agree")
        .join(real.select("t", "cause"), on="t")
        .sort("rank")
        .unique("f", keep="first", maintain_order=True)
        .select("f", true_cause="cause")
    )
    legal = truth.filter((pl.col("kind") == "legal") & pl.col("span_id").is_not_null())
    near = pairs.filter(~pl.col("agree")).select("f", truly="kind").unique("f")
    parents = real.filter(pl.col("kind").is_in(["detached_root", *LOSSES])).select(
        trace_id="true_parent_trace_id", span_id="true_parent_span_id", cascade=pl.lit(value=True)
    )
    judged = (
        found.join(right_cause, on="f", how="left")
        .join(near, on="f", how="left")
        .join(legal.select(*KEY, legal="detail").unique(KEY), on=KEY, how="left")
        .join(parents.unique(KEY), on=KEY, how="left")
        .with_columns(
            hit=pl.col("f").is_in(pairs.filter("agree")["f"].implode()),
            cascade=pl.col("cascade").fill_null(value=False)
            & pl.col("kind").is_in(["missing_server", "sampling_gap"]),
        )
        .filter(pl.col("hit") | ~pl.col("cascade"))
    )
    return judged, pl.concat([told, legal], how="diagonal")


def damaged(seed: int, *, quick: bool) -> tuple[TraceSet, TraceSet, pl.DataFrame, pl.DataFrame]:
    """Draw a fleet, its errors and its damage; all of it differs from seed to seed."""
    rng = np.random.default_rng([seed, 99])
    clean = synthesize_traces(
        seed=seed,
        traces=400 if quick else int(rng.integers(800, 4000)),
        services=int(rng.integers(3, 41)),
        concurrency=float(rng.choice([1.0, 3.0, 8.0, 20.0])),
        handoff_ms=float(rng.choice([0.2, 2.0, 20.0])),
        queue_delay_s=float(rng.choice([0.05, 1.0])),
        skew_ms=float(rng.choice([0.0, 0.02])),
        error_rate=0.0,
    )
    failing, hops = inject_errors(clean, seed=seed, rate=0.08)
    rates = {
        name: rate * float(rng.choice([0.0, 0.7, 1.5], p=[0.35, 0.4, 0.25]))
        for name, rate in DEFAULT_RATES.items()
    }
    broken, truth = inject_breaks(failing, seed=seed, rates=rates)
    return failing, broken, truth, hops


def measure_breaks(tally: Tally, traces: TraceSet, truth: pl.DataFrame, *, peers: bool) -> None:
    began = time.perf_counter()
    found = match_by_ids(traces) if peers else tl.find_breaks(traces)
    tally.seconds += time.perf_counter() - began
    judged, told = judge(found, truth, tally.captures)
    tally.cascades += found.height - judged.height
    tally.found.append(judged)
    tally.truth.append(told)
    tally.spans += traces.spans.height
    tally.captures += 1


def measure_hops(tally: Tally, traces: TraceSet, truth: pl.DataFrame) -> None:
    find = getattr(tl, "find_error_hops", None)
    if find is None:
        return
    found = find(traces)
    hops = truth.filter(pl.col("kind") == "error_hop")
    keyed = found.select(
        "trace_id",
        span_id="child_span_id",
        found_verdict="verdict",
        found_boundary="boundary",
        found_confidence="confidence",
    ).unique(KEY, keep="first", maintain_order=True)
    tally.hops.append(hops.join(keyed, on=KEY, how="left"))
    tally.extra_hops += keyed.join(hops, on=KEY, how="anti").height


def lab_runs(which: str) -> Iterator[tuple[str, TraceSet, pl.DataFrame]]:
    """Read the lab's captures with their truth."""
    for folder in sorted((ROOT / "data" / "lab").glob(f"*-{which}")):
        path = folder / "truth.jsonl.gz"
        if path.is_file():
            rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
            columns = {
                name: pl.Series(name, [row.get(name) for row in rows], dtype, strict=False)
                for name, dtype in schema.TRUTH.items()
            }
            exports = [
                file for file in folder.iterdir() if file.name.startswith(("traces", "metrics"))
            ]
            yield folder.name, tl.read_traces(*map(str, exports)), pl.DataFrame(columns)


def normally_answered(traces: TraceSet, truth: pl.DataFrame) -> pl.DataFrame:
    """Give per observable `missing_server` row how often calls like it are answered here.

    Calls are alike if service, operation and peer agree; the peer is the server's address, or
    else host and port of the called URL.
    """
    url = pl.col("attributes").str.extract(r'"(?:url\.full|http\.url)":"\w+://([^/"]+)')
    alike = ["service_name", "name", "peer"]
    answers = traces.spans.filter(pl.col("kind") == "SERVER").select(
        "trace_id", span_id="parent_span_id", answered=pl.lit(value=True)
    )
    calls = (
        traces.spans.filter(pl.col("kind") == "CLIENT")
        .select(*KEY, "service_name", "name", peer=pl.coalesce("server_address", url))
        .join(answers.unique(KEY), on=KEY, how="left")
        .with_columns(rate=pl.col("answered").fill_null(value=False).mean().over(alike))
    )
    rows = truth.filter((pl.col("kind") == "missing_server") & pl.col("observable"))
    return rows.select(*KEY, "cause").join(calls.select(*KEY, "rate"), on=KEY, how="inner")


def render_answered(rows: list[pl.DataFrame]) -> list[str]:
    """Say which `missing_server` rows stand at calls that are normally answered."""
    table = pl.concat(rows)
    usual = (table["rate"] > 0.5).sum()
    lines = [
        "`missing_server` rows at calls (service, operation, peer) of which more than half are "
        f"answered in the same capture: {share(usual, table.height)}. The others lack what the "
        "kind is defined by, a peer that normally answers; they stay in the table above.",
        "",
    ]
    grouped = table.group_by("cause", pl.col("rate").round(2)).len().sort("cause", "rate")
    return [*lines, *(f"- {c}, answered {r:.2f}: {n} rows" for c, r, n in grouped.rows()), ""]


def clean_at_size(seed: int, spans: int) -> list[str]:
    """Count warnings and errors in a clean capture that was written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clean.pb"
        write_synthetic(path, seed=seed, spans=spans)
        traces = tl.read_traces(str(path))
    alarms = tl.find_breaks(traces).filter(pl.col("severity") != "info")
    counts = alarms.group_by("kind", "cause").len().sort("kind", "cause").rows()
    lines = [
        f"- seed {seed}: {alarms.height} warnings and errors in {traces.spans.height:,} clean spans"
    ]
    return [*lines, *(f"  - {kind} / {cause}: {n}" for kind, cause, n in counts)]


def render(title: str, tally: Tally) -> list[str]:
    """Write the tables of one set."""
    if not tally.found:
        return [f"## {title}", "", "nothing to measure", ""]
    found = pl.concat(tally.found, how="diagonal")
    truth = pl.concat(tally.truth, how="diagonal")
    claims = found.filter(
        (pl.col("severity") != "info") | pl.col("kind").is_in(["clock_skew", "truncated_value"])
    )
    real = truth.filter(pl.col("kind") != "legal")
    cascade = pl.col("detail").fill_null("").str.starts_with("cascade")
    counted = real.filter(pl.col("observable") & ~cascade)
    rate = tally.spans / tally.seconds if tally.seconds else 0
    lines = [f"## {title}", ""]
    lines += [f"{tally.captures} captures, {tally.spans:,} spans, {rate:,.0f} spans/s.", ""]
    lines += ["| kind | precision | recall, observable | recall, all rows |", "|---|---|---|---|"]
    kinds = sorted(set(claims["kind"].unique()) | set(real["kind"].unique()))
    for kind in ["all", *kinds]:
        same = pl.lit(value=True) if kind == "all" else pl.col("kind") == kind
        said, seen, every = claims.filter(same), counted.filter(same), real.filter(same)
        lines.append(
            f"| {kind} | {share(said['hit'].sum(), said.height)} "
            f"| {share(seen['hit'].sum(), seen.height)} "
            f"| {share(every['hit'].sum(), every.height)} |"
        )
    lines += ["", *_words("cause", counted), *_words("boundary", counted)]
    lines += [*_confusion(counted, claims), *_parents(counted), *_reliability(claims)]
    legal = truth.filter(pl.col("kind") == "legal")
    called = claims.filter(pl.col("legal").is_not_null() & ~pl.col("hit"))
    letter = counted.filter(pl.col("hit") & (pl.col("boundary") != "unknown"))
    letter = letter.filter(pl.col("kind") != "clock_skew")
    letter = letter.filter(pl.col("found_boundary") != "unknown")
    exact = (letter["boundary"] == letter["found_boundary"]).sum()
    lines += [
        f"boundary, to the letter (process is not network): {share(exact, letter.height)}",
        "",
    ]
    lines += [f"breaks set aside as the cascade of another row: {tally.cascades}", ""]
    lines += [f"legal look-alikes called a break: {share(called.height, legal.height)}", ""]
    return lines


def _words(name: str, counted: pl.DataFrame) -> list[str]:
    """How often cause or boundary were right, over hits with evidence."""
    hits = counted.filter(pl.col("hit") & (pl.col(name) != "unknown"))
    if name == "boundary":
        hits = hits.filter(pl.col("kind") != "clock_skew")
    lines = [
        f"| {name} | right of those given | the same, where there is evidence "
        "| unknown, where there is evidence |",
        "|---|---|---|---|",
    ]
    for word in ["all", *sorted(hits[name].drop_nulls().unique())]:
        part = hits if word == "all" else hits.filter(pl.col(name) == word)
        given = part.filter(pl.col(f"found_{name}") != "unknown")
        afar = pl.col(name).is_in(AFAR) & pl.col(f"found_{name}").is_in(AFAR)
        one_sided = pl.col("kind").is_in(LOSSES) & afar & (name == "boundary")
        good = given.filter((pl.col(name) == pl.col(f"found_{name}")) | one_sided)
        proved_good, proved_given = (t.filter("evidence_present").height for t in (good, given))
        proved = part.filter("evidence_present")
        silent = (proved[f"found_{name}"] == "unknown").sum()
        lines.append(
            f"| {word} | {share(good.height, given.height)} "
            f"| {share(proved_good, proved_given)} | {share(silent, proved.height)} |"
        )
    return [*lines, ""]


def _confusion(counted: pl.DataFrame, claims: pl.DataFrame) -> list[str]:
    lines = ["misses (truth, called instead):"]
    missed = counted.filter(~pl.col("hit")).group_by("kind", "cause", "boundary", "called").len()
    lines += [
        f"- {kind} / {cause} / {boundary}, called {called or 'nothing'}: {count}"
        for kind, cause, boundary, called, count in missed.sort("len", descending=True)
        .head(12)
        .rows()
    ]
    lines += ["", "false alarms (called, truth):"]
    false = claims.filter(~pl.col("hit")).group_by("kind", "cause", "truly", "legal").len()
    lines += [
        f"- {kind} / {cause}, truly {truly or legal or 'nothing planted'}: {count}"
        for kind, cause, truly, legal, count in false.sort("len", descending=True).head(12).rows()
    ]
    for name in ("cause", "boundary"):
        lines += _matrix(counted.filter(pl.col("hit")), name)
    return [*lines, ""]


def _matrix(hits: pl.DataFrame, name: str) -> list[str]:
    counts = hits.group_by(name, f"found_{name}").len()
    cells = {(true, said): n for true, said, n in counts.rows()}
    given = sorted(set(counts[f"found_{name}"].drop_nulls()))
    lines = ["", f"| {name}, truth ↓ given → | " + " | ".join(given) + " |"]
    lines += ["|" + "---|" * (len(given) + 1)]
    for true in sorted(set(counts[name].drop_nulls())):
        row = " | ".join(str(cells.get((true, said), 0)) for said in given)
        lines.append(f"| {true} | {row} |")
    return lines


def _parents(counted: pl.DataFrame) -> list[str]:
    roots = counted.filter(pl.col("kind") == "detached_root")
    given = roots.filter(pl.col("found_proposed_span_id").is_not_null())
    right = given["found_proposed_span_id"] == given["true_parent_span_id"]
    sure = given.filter(pl.col("found_proposed_confidence") >= 0.8)
    sure_right = sure["found_proposed_span_id"] == sure["true_parent_span_id"]
    return [
        f"proposed parents of detached roots: right {share(right.sum(), given.height)}; "
        f"at confidence 0.8 or more {share(sure_right.sum(), sure.height)}; "
        f"proposed {share(given.height, roots.height)}",
        "",
    ]


def _reliability(claims: pl.DataFrame) -> list[str]:
    """Confidence of a stated cause against how often kind and cause were right."""
    given = claims.filter(pl.col("cause") != "unknown")
    right = (given["hit"] & (given["cause"] == given["true_cause"])).fill_null(value=False)
    lines = ["| confidence of a stated cause | right |", "|---|---|"]
    for low, high in pairwise(BINS):
        here = ((given["confidence"] >= low) & (given["confidence"] < high)).fill_null(value=False)
        if here.any():
            lines.append(
                f"| {low:.2f}–{min(high, 1):.2f} | {share((right & here).sum(), here.sum())} |"
            )
    return [*lines, ""]


def render_hops(tally: Tally) -> list[str]:
    """Write verdicts of error hops over the listed hops; what no SDK can tell stands apart."""
    if not tally.hops:
        return ["Error hops: `find_error_hops` is not there yet.", ""]
    every = pl.concat(tally.hops).filter("evidence_present")
    mute = pl.col("verdict") == "not_determinable"
    hops = every.filter(~mute)
    silent = pl.col("found_verdict") == "not_determinable"
    given = hops.filter(pl.col("found_verdict").is_not_null() & ~silent)
    lines = ["| hop verdict | precision | recall |", "|---|---|---|"]
    for verdict in ["all", *(word for word in schema.HOP_VERDICTS if word != "not_determinable")]:
        whole = verdict == "all"
        true = hops if whole else hops.filter(pl.col("verdict") == verdict)
        said = given if whole else given.filter(pl.col("found_verdict") == verdict)
        right = (true["verdict"] == true["found_verdict"]).sum()
        lines.append(f"| {verdict} | {share(right, said.height)} | {share(right, true.height)} |")
    untold, held = every.filter(mute), hops.filter(silent)
    lines += ["", "`not_determinable`, counted apart: "]
    lines[-1] += f"said so where it is true {share(untold.filter(silent).height, untold.height)}, "
    lines[-1] += f"said so where the verdict is known {share(held.height, hops.height)}."
    wrong = every.filter(pl.col("verdict") != pl.col("found_verdict").fill_null("no hop"))
    wrong = wrong.group_by("verdict", "found_verdict", "detail").len()
    wrong = wrong.sort("len", "verdict", "detail", descending=[True, False, False])
    lines += ["", "confused (truth, given, where):"]
    lines += [f"- {a}, {b or 'no hop'}, {c}: {n}" for a, b, c, n in wrong.head(15).rows()]
    note = "hops given that the truth does not list (it is a sample; not scored)"
    return [*lines, "", f"{note}: {tally.extra_hops}", ""]


def read_nezha(path: Path) -> TraceSet:
    """Read a trace table of the Nezha data set: spans of Online Boutique, without kind or status.

    The name of the service is that of the pod without what the deployment adds.
    """
    rows = pl.read_csv(path, infer_schema=False)
    rows = rows.filter(pl.col("TraceID").str.len_bytes() == 32)
    lines = []
    for (pod,), spans in rows.group_by("PodName", maintain_order=True):
        names = {"service.name": re.sub(r"-[0-9a-f]{6,10}-[a-z0-9]{5}$", "", str(pod))}
        names["k8s.pod.name"] = str(pod)
        attributes = [{"key": key, "value": {"stringValue": text}} for key, text in names.items()]
        recorded = spans.select(
            traceId="TraceID",
            spanId="SpanID",
            parentSpanId=pl.col("ParentID").replace("root", ""),
            name="OperationName",
            startTimeUnixNano="StartTimeUnixNano",
            endTimeUnixNano="EndTimeUnixNano",
        )
        group = {"scopeSpans": [{"spans": recorded.to_dicts()}]}
        group["resource"] = {"attributes": attributes}
        lines.append(json.dumps({"resourceSpans": [group]}))
    with tempfile.TemporaryDirectory() as scratch:
        export = Path(scratch, "nezha.jsonl")
        export.write_text("\n".join(lines) + "\n")
        return tl.read_traces(export)


def public_captures() -> list[str]:
    """Damage complete public captures: nothing may be found before, the damage after."""
    folder = Path(os.environ.get("TRACELAB_SHARED_DATA", ROOT.parent / "shared" / "data"))
    lines = ["## Public captures, damaged", ""]
    complete = [*folder.glob("Sachin-A-TraceWeaver__*.json.zst"), *folder.glob("*Nezha__*.csv.zst")]
    for path in sorted(complete):
        clean = read_nezha(path) if path.name.endswith(".csv.zst") else tl.read_traces(str(path))
        breaks = tl.find_breaks(clean)
        false = breaks.filter(pl.col("severity") != "info").height
        lines.append(f"{path.name}: {clean.spans.height:,} spans, {false} false breaks as it is.")
        for name, rates in (
            ("5 % of spans lost", {"random_loss": 0.05}),
            ("20 % of spans lost", {"random_loss": 0.2}),
            ("5 % of hops cut", {"context_not_propagated": 0.05}),
        ):
            tally = Tally()
            broken, truth = inject_breaks(clean, seed=7, rates=rates)
            measure_breaks(tally, broken, truth, peers=False)
            found, told = tally.found[0], tally.truth[0]
            seen = told.filter((pl.col("kind") != "legal") & pl.col("observable"))
            said = found.filter(pl.col("severity") != "info")
            lines.append(
                f"- {name}: precision {share(said['hit'].sum(), said.height)}, "
                f"recall {share(seen['hit'].sum(), seen.height)}"
            )
            if "hops cut" in name:
                lines += [f"  - {line}" for line in _parents(seen) if line]
    return [*lines, ""] if len(lines) > 2 else [*lines, "not at hand", ""]


def synthetic(title: str, seeds: list[int], *, quick: bool) -> list[str]:
    ours, peers, sound = Tally(), Tally(), Tally()
    for seed in seeds:
        failing, broken, truth, hops = damaged(seed, quick=quick)
        measure_breaks(ours, broken, truth, peers=False)
        measure_breaks(peers, broken, truth, peers=True)
        measure_hops(ours, failing, hops)
        quiet, look_alikes = inject_breaks(failing, seed=seed, rates={})
        measure_breaks(sound, quiet, look_alikes, peers=False)
    lines = render(title, ours) + render_hops(ours)
    alarms = pl.concat(sound.found, how="diagonal").filter(pl.col("severity") != "info")
    counts = ", ".join(
        f"{kind} {n}" for kind, n in alarms.group_by("kind").len().sort("kind").rows()
    )
    lines += [
        f"the same captures without damage: {alarms.height} breaks in {sound.spans:,} spans"
        + (f" ({counts})" if counts else ""),
        "",
    ]
    return lines + render(f"{title}: plain id matching", peers)


def _copies(twice: pl.DataFrame) -> int:
    """Count the copies beside the first: a row may say how often its span was written."""
    times = twice["detail"].str.extract(r"written (\d+) times").cast(pl.Int64).fill_null(2)
    return int((times - 1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small seeds, no public captures")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of each set")
    parser.add_argument("--json", type=Path, help="write the report's lines here, too")
    arguments = parser.parse_args()
    quick = arguments.quick
    lines = ["# Accuracy against planted truth", ""]
    if quick:
        lines += synthetic("Synthetic, two small seeds", [1, 2], quick=True)
    else:
        fresh = [secrets.randbelow(1 << 30) for _ in range(arguments.seeds)]
        sets = {
            "Synthetic, seeds for development": list(range(1, arguments.seeds + 1)),
            "Synthetic, seeds held back": list(range(9_001, 9_001 + arguments.seeds)),
            f"Synthetic, fresh seeds ({', '.join(map(str, fresh))})": fresh,
        }
        for title, seeds in sets.items():
            lines += synthetic(title, seeds, quick=False)
    for which in ("dev",) if quick else ("dev", "held"):
        ours, peers = Tally(), Tally()
        dropped = planted = 0
        answered: list[pl.DataFrame] = []
        for _, traces, truth in lab_runs(which):
            answered.append(normally_answered(traces, truth))
            twice = pl.col("cause") == "duplicate_export"
            planted += _copies(truth.filter(twice))
            dropped += int(traces.ingest["spans_duplicate"].sum())
            truth = truth.filter(~twice.fill_null(value=False))
            measure_breaks(ours, traces, truth, peers=False)
            measure_breaks(peers, traces, truth, peers=True)
            measure_hops(ours, traces, truth)
        lines += render(f"Lab, {which}", ours) + render_hops(ours)
        lines += [f"exact duplicates dropped by the loader: {dropped}, planted: {planted}", ""]
        lines += render_answered(answered) if answered else []
        lines += render(f"Lab, {which}: plain id matching", peers)
    if not quick:
        lines += ["## Clean captures at size, known seeds and two fresh ones", ""]
        for seed in (*ONCE_WRONG, *(secrets.randbelow(1 << 30) for _ in range(2))):
            lines += clean_at_size(seed, 300_000)
        lines += ["", *public_captures()]
    print("\n".join(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(_as_rows(lines), indent=1))


def _as_rows(lines: list[str]) -> list[dict[str, Any]]:
    """Table rows of the report as objects, under their headings."""
    rows: list[dict[str, Any]] = []
    heading = ""
    for line in lines:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("|---"):
            rows.append({"set": heading, "cells": [cell.strip() for cell in line.split("|")[1:-1]]})
    return rows


if __name__ == "__main__":
    main()
