"""Damage to rows that were exported: ids, clocks, values, duplicates, cycles."""

import json

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.synth.plot import Flags, Ints, Plot, take


def skew_clocks(plot: Plot, *, rate: float, rng: np.random.Generator) -> pl.DataFrame:
    """Shift the clock of some hosts (processes, where no host is named) by 2 ms to 5 s."""
    hosts = plot.spans["host_name"].fill_null(pl.Series(plot.process).cast(pl.String))
    names = hosts.unique().sort()
    many = max(1, round(rate * len(names)))
    shift = np.zeros(plot.n, np.int64)
    for name in rng.choice(names.to_numpy(), size=min(many, len(names)), replace=False):
        size = int(np.exp(rng.uniform(np.log(2e6), np.log(5e9))))
        shift[(hosts == name).to_numpy()] = size * int(rng.choice([-1, 1]))
    across = np.flatnonzero((plot.up >= 0) & (plot.lost == 0))
    up = plot.up[across]
    good = (plot.lost[up] == 0) & (shift[across] != shift[up])
    rows, up = across[good], up[good]
    # work that nobody waits for may well end late, so only calls show a clock by their ends
    waited = (plot.kind[rows] == "SERVER") & (plot.end[rows] <= plot.end[up])
    plot.start = plot.start + shift
    plot.end = plot.end + shift
    out = (plot.start[rows] < plot.start[up]) | (waited & (plot.end[rows] > plot.end[up]))
    details = [f"{value / 1e6:.3f} ms" for value in (shift[rows] - shift[up]).tolist()]
    return _rows(plot, rows, "clock_skew", detail=details, parents=True, observable=out)


def bend_parents(plot: Plot, *, rate: float, rng: np.random.Generator) -> pl.DataFrame:
    """Turn some parent links into cycles of one, two or three spans."""
    kept = np.flatnonzero((plot.lost == 0) & (plot.up >= 0))
    kept = kept[plot.lost[plot.up[kept]] == 0]
    rows = rng.choice(kept, size=min(len(kept), max(1, round(rate * len(kept)))), replace=False)
    rows = rows[np.unique(plot.ids["trace_id"].gather(rows).to_numpy(), return_index=True)[1]]
    top = plot.up[rows].copy()
    alone = rng.random(len(rows)) < 0.2
    top[alone] = rows[alone]
    parent = plot.ids["parent_span_id"].scatter(top, plot.ids["span_id"].gather(rows))
    plot.ids = plot.ids.with_columns(parent)
    plot.up[top] = -1
    return _rows(plot, top, "parent_cycle", detail=np.where(alone, "self", "two").tolist())


def spoil_ids(plot: Plot, *, rate: float, rng: np.random.Generator) -> pl.DataFrame:
    """Spoil the ids of some leaves: zero, too short, no hex, or a spoilt parent id."""
    leaf = plot.lost == 0
    leaf[plot.up[plot.up >= 0]] = False
    rows = np.flatnonzero(leaf & (plot.up >= 0))
    rows = np.sort(
        rng.choice(rows, size=min(len(rows), max(1, round(rate * len(rows)))), replace=False)
    )
    shapes = rng.integers(0, 3, len(rows))
    text = plot.ids["span_id"].gather(rows).to_list()
    spoilt = [
        (word[:9], "0" * 16, "id-" + word)[shape]
        for word, shape in zip(text, shapes.tolist(), strict=True)
    ]
    # each of a trace's spoilt ids stays its own, so that no duplicate comes of it
    plot.ids = plot.ids.with_columns(plot.ids["span_id"].scatter(rows, spoilt))
    names = np.array(["short", "zero", "no hex"])[shapes].tolist()
    return _rows(plot, rows, "invalid_id", detail=names)


def clip_values(
    spans: pl.DataFrame, *, rate: float, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut long attribute texts of some services at a length limit, as SDKs do.

    Values that all had one length, digests say, still have one length afterwards: nothing in the
    export tells them from digests that are as short as the limit, so they are not observable.
    """
    services = spans["service_name"].drop_nulls().unique().sort().to_numpy()
    many = max(1, round(rate * len(services)))
    chosen = rng.choice(services, size=min(many, len(services)), replace=False)
    attributes = spans["attributes"]
    hit_rows: list[int] = []
    texts: list[str] = []
    seen: list[bool] = []
    for service in chosen:
        cuts: list[set[str]] = []
        lengths: dict[str, set[int]] = {}
        limit = int(rng.choice([64, 128, 256]))
        mine = (spans["service_name"] == service) & attributes.is_not_null()
        for row in mine.fill_null(value=False).arg_true().to_list():
            facts = json.loads(attributes[row])
            for k, v in facts.items():
                if isinstance(v, str):
                    lengths.setdefault(k, set()).add(len(v))
            cut = {k: v[:limit] if isinstance(v, str) else v for k, v in facts.items()}
            if cut != facts:
                cuts.append({k for k in facts if cut[k] != facts[k]})
                hit_rows.append(row)
                texts.append(json.dumps(cut, separators=(",", ":"), ensure_ascii=False))
        seen += [any(len(lengths[key]) > 1 for key in keys) for keys in cuts]
    found = spans[hit_rows].select("trace_id", "span_id", "service_name")
    truth = found.with_columns(
        kind=pl.lit("truncated_value"),
        cause=pl.lit("unknown"),
        boundary=pl.lit("same"),
        observable=pl.Series(seen, dtype=pl.Boolean),
        evidence_present=pl.Series(seen, dtype=pl.Boolean),
    )
    index = pl.Series(hit_rows, dtype=pl.UInt32)
    return spans.with_columns(attributes.scatter(index, texts)), schema.conform(truth, schema.TRUTH)


def repeat_spans(
    spans: pl.DataFrame, *, exact: float, conflicting: float, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Deliver some batches twice, and give some spans the ids of another."""
    n = spans.height
    batch = 20
    twice = rng.random(n // batch + 1) < exact
    again = spans.filter(pl.Series(twice[np.arange(n) // batch]))
    other = np.sort(rng.choice(n, size=round(conflicting * n), replace=False))
    clash = spans[other.tolist()].with_columns(
        name=pl.col("name") + pl.lit(" again"),
        end_time=pl.col("end_time") + pl.duration(nanoseconds=150_000, time_unit="ns"),
        duration_ns=pl.col("duration_ns") + 150_000,
    )
    truth = pl.concat(
        part.select("trace_id", "span_id", "service_name").with_columns(
            kind=pl.lit("duplicate_span_id"),
            cause=pl.lit(cause),
            boundary=pl.lit("unknown"),
            detail=pl.lit(detail),
            observable=pl.lit(value=True),
            evidence_present=pl.lit(cause != "unknown"),
        )
        for part, cause, detail in (
            (again, "duplicate_export", "exact"),
            (clash, "unknown", "conflicting"),
        )
    )
    return pl.concat([spans, again, clash]), schema.conform(truth, schema.TRUTH)


def _rows(
    plot: Plot,
    rows: Ints,
    kind: str,
    *,
    detail: list[str],
    parents: bool = False,
    observable: Flags | None = None,
) -> pl.DataFrame:
    shown = np.ones(len(rows), bool) if observable is None else observable
    own = take(plot.ids, rows)
    above = take(plot.ids, plot.up[rows] if parents else np.full(len(rows), -1))
    table = pl.DataFrame(
        {
            "kind": pl.repeat(kind, len(rows), eager=True),
            "cause": pl.repeat("unknown", len(rows), eager=True),
            "boundary": pl.Series(plot.boundary[rows], dtype=pl.String),
            "trace_id": own["trace_id"],
            "span_id": own["span_id"],
            "true_parent_trace_id": above["trace_id"],
            "true_parent_span_id": above["span_id"],
            "service_name": take(plot.spans.select("service_name"), rows)["service_name"],
            "detail": pl.Series(detail, dtype=pl.String),
            "observable": pl.Series(shown),
            "evidence_present": pl.Series(shown),
        }
    )
    return schema.conform(table, schema.TRUTH)
