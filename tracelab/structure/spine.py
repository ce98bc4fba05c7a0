"""The spine: what structure needs to know of a span, as numbers.

Ids become 64-bit integers, texts become 64-bit hashes with a dictionary beside them, the
parent becomes a row number. A bucket of spans is reduced to its spine in one pass of native
code; spines of many buckets are stacked and everything that crosses traces works on them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.traceset import TraceSet

ROOT: Final = 0
INTACT: Final = 1
ORPHAN: Final = 2
"""Values of the spine's ``state``."""

NO_ROW: Final = -1

SPINE: Final = pl.Schema(
    {
        "trace": pl.UInt32,
        "span": pl.UInt64,
        "parent": pl.UInt64,
        "key": pl.UInt64,
        "parent_row": pl.Int64,
        "state": pl.UInt8,
        "remote": pl.Int8,
        "crossing": pl.UInt8,
        "start": pl.Int64,
        "end": pl.Int64,
        "op": pl.UInt64,
        "process": pl.UInt64,
        "peer": pl.UInt64,
        "thread": pl.UInt32,
        "task": pl.UInt32,
        "request": pl.UInt32,
        "tenant": pl.UInt32,
        "sampled": pl.Int8,
        "error": pl.Boolean,
        "answered": pl.Boolean,
        "turned_away": pl.Boolean,
        "code": pl.UInt16,
        "linked": pl.Boolean,
        "shared": pl.Boolean,
    }
)
"""``trace`` is a row of TRACES; ``state`` is ROOT, INTACT or ORPHAN; ``remote`` is 1, 0, or -1
where the span does not say; ``crossing`` indexes CROSSINGS; ``sampled`` is bit 0 of the flags, or
-1 where flags are absent; ``answered``: a response code or an unset or good status says that
something replied; ``turned_away``: nothing did, or what may be a gateway in front of the peer;
``code`` is the HTTP response code, 0 where there is none;
``request`` and ``tenant`` and ``thread`` and ``task`` are 0 where unknown; ``shared``: another
span has the same key."""

TRACES: Final = pl.Schema({"trace_hi": pl.UInt64, "trace_lo": pl.UInt64})
OPS: Final = pl.Schema(
    {"op": pl.UInt64, "service_name": pl.String, "name": pl.String, "kind": pl.String}
)
PROCESSES: Final = pl.Schema(
    {
        "process": pl.UInt64,
        "service_name": pl.String,
        "service_instance_id": pl.String,
        "host_name": pl.String,
        "process_pid": pl.Int64,
        "sdk_language": pl.String,
        "sdk_version": pl.String,
    }
)
PEERS: Final = pl.Schema({"peer": pl.UInt64, "server_address": pl.String})
ODD_IDS: Final = pl.Schema(
    {"key": pl.UInt64, "trace_id": pl.String, "span_id": pl.String, "parent_span_id": pl.String}
)

CROSSINGS: Final[tuple[tuple[str, str], ...]] = (
    ("unknown", "no parent in the capture"),
    ("queue", "kinds: a producer's message read by a consumer"),
    ("queue", "kind CONSUMER in another process than its parent"),
    ("process", "other process on the same host"),
    ("network", "host names differ"),
    ("process", "the caller's peer address is the loopback interface"),
    ("network", "flags: the parent is remote"),
    ("network", "kinds CLIENT and SERVER"),
    ("network", "services differ"),
    ("network", "service instances differ"),
    ("thread", "thread ids differ within one process"),
    ("task", "task ids differ within one process"),
    ("same", "thread and task ids agree"),
    ("same", "flags: the parent is local; no thread or task ids"),
    ("same", "same service instance; no thread or task ids"),
)
"""Boundary and its evidence by ``crossing``."""

LOOPBACK: Final = r"^(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)(:\d+)?$"

_HEX_TRACE: Final = 32
_HEX_SPAN: Final = 16


@dataclass(frozen=True, slots=True)
class Spine:
    """A spine with the dictionaries of its hashes.

    Parameters
    ----------
    spans : pl.DataFrame
        Columns of SPINE, one row per span.
    traces, ops, processes, peers, odd_ids : pl.DataFrame
        Columns of TRACES, OPS, PROCESSES, PEERS; texts of ids that are no hex numbers. A peer
        that only its URL tells has no address.
    """

    spans: pl.DataFrame
    traces: pl.DataFrame
    ops: pl.DataFrame
    processes: pl.DataFrame
    peers: pl.DataFrame
    odd_ids: pl.DataFrame


def span_words(ops: pl.DataFrame) -> pl.Series:
    """Name spans of operations as prose does.

    Parameters
    ----------
    ops : pl.DataFrame
        Columns ``service_name`` and ``name``.

    Returns
    -------
    pl.Series
        ``'name' of service``, row by row.

    Raises
    ------
    ColumnNotFoundError
        If a column is missing.
    """
    return ops.select(
        pl.format(
            "'{}' of {}", pl.col("name").fill_null("?"), pl.col("service_name").fill_null("?")
        )
    ).to_series()


def take_rows(table: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
    """Return rows of a table by number; a null number gives a row of nulls.

    Parameters
    ----------
    table : pl.DataFrame
        Any table.
    rows : pl.Series
        Row numbers.

    Returns
    -------
    pl.DataFrame
        As many rows as numbers.

    Raises
    ------
    OutOfBoundsError
        If `table` has no such row.
    """
    return table.select(pl.all().gather(rows))


_MULTIPLIER: Final = 0x9E3779B97F4A7C15


def _mix(*hashes: pl.Expr) -> pl.Expr:
    """Combine hashes into one; the order matters."""
    mixed = hashes[0]
    for more in hashes[1:]:
        mixed = (mixed * pl.lit(_MULTIPLIER, pl.UInt64)) ^ more
    return mixed


def mix_keys(
    trace_hi: npt.NDArray[np.uint64], trace_lo: npt.NDArray[np.uint64], span: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Compute the spine's ``key`` of spans from their ids.

    Parameters
    ----------
    trace_hi, trace_lo, span : ndarray of uint64
        Ids as numbers, row by row.

    Returns
    -------
    ndarray of uint64
        As many keys.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    factor = np.uint64(_MULTIPLIER)
    return ((trace_hi * factor) ^ trace_lo) * factor ^ span


def _number(text: pl.Expr) -> pl.Expr:
    """Read up to 16 hex digits; null where the text is anything else."""
    return text.str.to_integer(base=16, dtype=pl.UInt64, strict=False)


def _ids() -> list[pl.Expr]:
    trace, span, parent = pl.col("trace_id"), pl.col("span_id"), pl.col("parent_span_id")
    good_trace = trace.str.len_bytes() == _HEX_TRACE
    return [
        pl.when(good_trace).then(_number(trace.str.head(16))).alias("trace_hi"),
        pl.when(good_trace).then(_number(trace.str.tail(16))).alias("trace_lo"),
        pl.when(span.str.len_bytes() == _HEX_SPAN).then(_number(span)).alias("span"),
        pl.when(parent.str.len_bytes() == _HEX_SPAN).then(_number(parent)).alias("parent"),
    ]


def _text_hash(*names: str) -> pl.Expr:
    return _mix(*(pl.col(name).hash(seed) for seed, name in enumerate(names, start=1)))


def _short_hash(*names: str) -> pl.Expr:
    """Hash texts to 32 bits; 0 where all of them are null."""
    unknown = pl.all_horizontal(pl.col(name).is_null() for name in names)
    return (
        pl.when(unknown)
        .then(pl.lit(0, pl.UInt64))
        .otherwise(_text_hash(*names) // (1 << 32) | 1)
        .cast(pl.UInt32)
    )


_PROCESS_TEXTS: Final = ("service_name", "service_instance_id", "host_name", "process_pid")


_NOBODY_THERE: Final = (502, 503, 504)
"""Codes with which a gateway says that it got no answer from behind it (RFC 9110, 15.6); 503 is
a server's own as often."""


def _coded(traces: TraceSet) -> pl.DataFrame:
    """Numbers of each span, parent rows not yet known."""
    flags = pl.col("flags").fill_null(0)
    answered = pl.col("http_response_status_code").is_not_null() | (
        pl.col("status_code") != "ERROR"
    ).fill_null(value=True)
    coded = traces.spans.select(
        *_ids(),
        pl.when(pl.col("parent_is_remote").is_null())
        .then(pl.lit(-1, pl.Int8))
        .otherwise(pl.col("parent_is_remote").cast(pl.Int8))
        .alias("remote"),
        pl.col("start_time").cast(pl.Int64).alias("start"),
        pl.col("end_time").cast(pl.Int64).alias("end"),
        _text_hash("service_name", "name", "kind").alias("op"),
        _text_hash(*_PROCESS_TEXTS).alias("process"),
        _peers(traces.spans).hash(5).alias("peer"),
        _short_hash("thread_id", "thread_name").alias("thread"),
        _short_hash("task_id").alias("task"),
        _short_hash("request_id").alias("request"),
        _short_hash("tenant_id").alias("tenant"),
        pl.when(flags == 0)
        .then(pl.lit(-1, pl.Int8))
        .otherwise((flags & 1).cast(pl.Int8))
        .alias("sampled"),
        (pl.col("status_code") == "ERROR").fill_null(value=False).alias("error"),
        answered.alias("answered"),
        (
            ~answered
            | pl.col("http_response_status_code").is_in(_NOBODY_THERE).fill_null(value=False)
        ).alias("turned_away"),
        pl.col("http_response_status_code")
        .cast(pl.UInt16, strict=False)
        .fill_null(0)
        .alias("code"),
        (pl.col("trace_id").hash(11)).alias("_trace_hash"),
        (pl.col("span_id").hash(12)).alias("_span_hash"),
        (pl.col("parent_span_id").hash(12)).alias("_parent_hash"),
        pl.col("parent_span_id").is_null().alias("_root"),
    )
    return (
        coded.with_columns(
            pl.any_horizontal(
                pl.col("trace_hi", "trace_lo", "span").is_null(),
                pl.col("parent").is_null() & ~pl.col("_root"),
            ).alias("_odd"),
            pl.col("trace_hi").fill_null(pl.col("_trace_hash")),
            pl.col("trace_lo").fill_null(pl.col("_trace_hash")),
            pl.col("span").fill_null(pl.col("_span_hash")),
            pl.when("_root")
            .then(pl.lit(0, pl.UInt64))
            .otherwise(pl.col("parent").fill_null(pl.col("_parent_hash")))
            .alias("parent"),
        )
        .with_columns(
            _mix(pl.col("trace_hi"), pl.col("trace_lo"), pl.col("span")).alias("key"),
            pl.when(~pl.col("_root"))
            .then(_mix(pl.col("trace_hi"), pl.col("trace_lo"), pl.col("parent")))
            .alias("_parent_key"),
        )
        .with_columns(pl.col("key").is_duplicated().alias("shared"))
    )


_CALLED: Final = r'"(?:url\.full|http\.url)":"\w+://([^/"?]+/?[A-Za-z_-]*)'
"""Host, port and first word of the path of a called URL: behind one port may stand a gateway that
routes by path."""


def _peers(spans: pl.DataFrame) -> pl.Series:
    """Tell whom each span calls: the server's address, or what the URL says where that is vague."""
    named = spans["server_address"]
    vague = (spans["kind"] == "CLIENT").fill_null(value=False) & (
        named.is_null() | _loopback(named).fill_null(value=False)
    )
    rows = vague.arg_true()
    if not rows.len():
        return named
    called = spans["attributes"].gather(rows).str.extract(_CALLED, 1)
    return named.scatter(rows, called.fill_null(named.gather(rows)))


def _parent_rows(coded: pl.DataFrame) -> pl.Series:
    """Row of each span's parent; of spans that share an id the earliest, in any row order."""
    rows = coded.select("key", "start", "end", "op", "shared").with_row_index("parent_row")
    shared = rows.filter("shared")
    if shared.height:
        first = shared.sort("key", "start", "end", "op").unique("key", keep="first")
        rows = pl.concat([rows.filter(~pl.col("shared")), first])
    return (
        coded.select("_parent_key")
        .join(
            rows.select("key", pl.col("parent_row").cast(pl.Int64)),
            left_on="_parent_key",
            right_on="key",
            how="left",
            maintain_order="left",
        )
        .get_column("parent_row")
    )


def _crossing(child: pl.DataFrame, parent: pl.DataFrame) -> pl.Series:
    """Which row of CROSSINGS each parent to child edge is; `parent` stands row by row."""
    both = child.hstack(parent.rename({name: f"p_{name}" for name in parent.columns}))

    def differ(name: str) -> pl.Expr:
        return (pl.col(name) != pl.col(f"p_{name}")).fill_null(value=False)

    def agree(name: str) -> pl.Expr:
        return (pl.col(name) == pl.col(f"p_{name}")).fill_null(value=False)

    remote, local = pl.col("remote") == 1, pl.col("remote") == 0
    instances = differ("service_instance_id") | differ("process_pid") | differ("host_name")
    kinds = (pl.col("kind") == "SERVER") & ~local
    other = remote | instances | kinds | (differ("service_name") & ~local)
    consumes = pl.col("kind") == "CONSUMER"
    produced = pl.col("p_kind") == "PRODUCER"
    threads = (pl.col("thread") != 0) & (pl.col("p_thread") != 0)
    tasks = (pl.col("task") != 0) & (pl.col("p_task") != 0)
    return both.select(
        pl.when(consumes & produced)
        .then(1)
        .when((consumes | produced) & other)
        .then(2)
        .when(other & agree("host_name"))
        .then(3)
        .when(other & differ("host_name"))
        .then(4)
        .when(other & pl.col("p_loopback").fill_null(value=False))
        .then(5)
        .when(remote)
        .then(6)
        .when(other & (pl.col("kind") == "SERVER") & (pl.col("p_kind") == "CLIENT"))
        .then(7)
        .when(other & differ("service_name"))
        .then(8)
        .when(other & instances)
        .then(9)
        .when(other)
        .then(7)
        .when(threads & differ("thread"))
        .then(10)
        .when(tasks & differ("task"))
        .then(11)
        .when(threads | tasks)
        .then(12)
        .when(local)
        .then(13)
        .otherwise(14)
        .cast(pl.UInt8)
        .alias("crossing")
    ).to_series()


def _goroutines(traces: TraceSet) -> pl.DataFrame | None:
    """Goroutine of spans whose recorded Go stack begins with its header."""
    stacks = traces.events.filter(pl.col("exception_stacktrace").str.starts_with("goroutine "))
    if not stacks.height:
        return None
    return stacks.select(
        "trace_id",
        "span_id",
        pl.col("exception_stacktrace").str.extract(r"^goroutine (\d+) \[").alias("goroutine"),
    ).unique(["trace_id", "span_id"], keep="first", maintain_order=True)


def _with_goroutines(traces: TraceSet) -> TraceSet:
    found = _goroutines(traces)
    if found is None:
        return traces
    spans = traces.spans.join(
        found, on=["trace_id", "span_id"], how="left", maintain_order="left"
    ).with_columns(pl.coalesce("task_id", "goroutine").alias("task_id"))
    return traces.with_tables(spans=spans.drop("goroutine"))


def build_spine(traces: TraceSet) -> Spine:
    """Reduce spans to numbers, find each span's parent and the boundary between them.

    Parameters
    ----------
    traces : TraceSet
        Whole traces: a parent that stands in another bucket is not found.

    Returns
    -------
    Spine
        Rows in the order of ``traces.spans``.
    """
    traces = _with_goroutines(traces)
    spans = traces.spans
    coded = _coded(traces)
    parent_row = _parent_rows(coded)
    edge_columns = spans.select(
        "service_name", "service_instance_id", "host_name", "process_pid", "kind"
    ).hstack(coded.select("remote", "thread", "task"))
    parent_columns = edge_columns.drop("remote").with_columns(_loopback(spans["server_address"]))
    crossing = _crossing(edge_columns, take_rows(parent_columns, parent_row))
    linked = _linked(traces)
    ids = coded.select(TRACES.names()).unique()
    trace = coded.select(TRACES.names()).join(
        ids.with_row_index("trace"), on=TRACES.names(), how="left", maintain_order="left"
    )["trace"]
    spine = coded.with_columns(
        trace,
        parent_row.fill_null(NO_ROW).alias("parent_row"),
        pl.when(parent_row.is_not_null())
        .then(pl.lit(INTACT, pl.UInt8))
        .when("_root")
        .then(pl.lit(ROOT, pl.UInt8))
        .otherwise(pl.lit(ORPHAN, pl.UInt8))
        .alias("state"),
        pl.when(parent_row.is_null())
        .then(pl.lit(0, pl.UInt8))
        .otherwise(crossing)
        .alias("crossing"),
        linked.alias("linked"),
    ).select(SPINE.names())
    return Spine(
        spans=spine,
        traces=ids,
        ops=_dictionary(spans, spine, "op", OPS),
        processes=_dictionary(spans, spine, "process", PROCESSES),
        peers=_dictionary(spans, spine, "peer", PEERS),
        odd_ids=_odd_ids(spans, spine, coded["_odd"]),
    )


def _loopback(addresses: pl.Series) -> pl.Series:
    distinct = addresses.unique().drop_nulls()
    loopback = distinct.filter(distinct.str.contains(LOOPBACK))
    return addresses.is_in(loopback.implode()).alias("loopback")


def _linked(traces: TraceSet) -> pl.Series:
    if not traces.links.height:
        return pl.repeat(value=False, n=traces.spans.height, eager=True)
    owners = traces.links.select("trace_id", "span_id").unique().with_columns(linked=True)
    return (
        traces.spans.select("trace_id", "span_id")
        .join(owners, on=["trace_id", "span_id"], how="left", maintain_order="left")
        .get_column("linked")
        .fill_null(value=False)
    )


def _dictionary(
    spans: pl.DataFrame, spine: pl.DataFrame, code: str, table: pl.Schema
) -> pl.DataFrame:
    """Texts of each hash."""
    first = spine.select(code).with_row_index("row").unique(code, keep="first")
    texts = spans.select(name for name in table.names() if name != code)
    texts = take_rows(texts, first["row"])
    return first.select(code).hstack(texts).sort(table.names())


def _odd_ids(spans: pl.DataFrame, spine: pl.DataFrame, unread: pl.Series) -> pl.DataFrame:
    """Ids that cannot be printed from their numbers."""
    signed = pl.any_horizontal(pl.col("trace_id", "span_id").str.contains(r"[+\-A-F]"))
    odd = unread | spans.select(signed.fill_null(value=True)).to_series()
    if not odd.any():
        return pl.DataFrame(schema=ODD_IDS)
    return (
        spine.select("key")
        .hstack(spans.select("trace_id", "span_id", "parent_span_id"))
        .filter(odd)
        .unique("key", keep="first", maintain_order=True)
    )
