"""Is the record of each error complete? The checklist, its exemptions, its signatures."""

from typing import Final

import polars as pl

from tracelab import schema, semconv
from tracelab.errors_chain.evidence import SPAN, exception_records, failing_spans
from tracelab.errors_chain.intervals import wilson
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.traceset import TraceSet, require_traces

PARTS: Final = ("status_ok", "exception_ok", "stacktrace_ok", "error_type_ok")
CALL_KINDS: Final = ["SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
STACKLESS: Final = ["go", "rust", "cpp", "swift", "erlang"]
"""SDKs that record no stack unless asked to (Go needs ``WithStackTrace``)."""

_OLD_HTTP: Final = r'"http\.(?:method|status_code)"'
_NEW_HTTP: Final = r'"http\.(?:request\.method|response\.status_code)"'
ERROR_TYPE_SINCE: Final = 23
"""Minor version of the semantic conventions in which error.type and the stable HTTP
conventions stand together; a scope that says it follows an older one is exempt."""


def audit_errors(traces: TraceSet, *, exceptions: pl.DataFrame | None = None) -> pl.DataFrame:
    """Check the record of every error: status, exception, stack, error.type.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    exceptions : pl.DataFrame, optional
        Schema EXCEPTIONS of the same capture; parsed where not given.

    Returns
    -------
    pl.DataFrame
        Schema ERROR_AUDIT, one row per span with evidence of an error, sorted by (time,
        trace_id, span_id). A part that convention or SDK lets be absent stands as true,
        and ``exempt`` says why. ``signature`` is ``panic`` (Go's ``span.End`` recorded it
        while unwinding: event at or after the end, status unset), ``recovered_panic``
        (the same, and the service still answered), ``event_without_status``,
        ``status_without_event`` or ``5xx_without_evidence``.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if exceptions is None:
        exceptions = parse_exceptions(traces)
    schema.require_columns(exceptions, schema.EXCEPTIONS, name="exceptions")
    errors = _errors(traces, exceptions)
    if errors.is_empty():
        return schema.empty(schema.ERROR_AUDIT)
    checked = _check(_with_company(errors))
    return schema.conform(
        checked.select(
            *SPAN,
            pl.col("start_time").alias("time"),
            "service_name",
            *PARTS,
            "signature",
            "exempt",
        ),
        schema.ERROR_AUDIT,
    ).sort("time", *SPAN)


def error_audit_rates(traces: TraceSet, *, audit: pl.DataFrame | None = None) -> pl.DataFrame:
    """Count incomplete error records per service, scope and version.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    audit : pl.DataFrame, optional
        Schema ERROR_AUDIT of the same capture; computed where not given.

    Returns
    -------
    pl.DataFrame
        service_name, sdk_language, scope_name, scope_version, part, errors, incomplete,
        rate, rate_low, rate_high (95 % Wilson interval), exempt; most frequent first.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if audit is None:
        audit = audit_errors(traces)
    schema.require_columns(audit, schema.ERROR_AUDIT, name="audit")
    scope = ["sdk_language", "scope_name", "scope_version"]
    spans = traces.spans.select(*SPAN, *scope).unique(SPAN, keep="first")
    long = (
        audit.join(spans, on=SPAN, how="left")
        .with_columns(pl.col("exempt").is_not_null())
        .unpivot(
            on=list(PARTS),
            index=["service_name", *scope, "exempt"],
            variable_name="part",
            value_name="ok",
        )
    )
    low, high = wilson(pl.col("incomplete"), pl.col("errors"))
    return (
        long.group_by("service_name", *scope, "part")
        .agg(
            pl.len().cast(pl.Int64).alias("errors"),
            (~pl.col("ok")).sum().cast(pl.Int64).alias("incomplete"),
            pl.col("exempt").sum().cast(pl.Int64),
        )
        .with_columns(
            (pl.col("incomplete") / pl.col("errors")).alias("rate"),
            low.alias("rate_low"),
            high.alias("rate_high"),
        )
        .sort(
            ["incomplete", "service_name", *scope, "part"],
            descending=[True, *[False] * 5],
            nulls_last=True,
        )
    )


def _errors(traces: TraceSet, exceptions: pl.DataFrame) -> pl.DataFrame:
    records = exception_records(traces, exceptions)
    found = failing_spans(traces, records)
    typed = traces.spans.filter(pl.col("error_type").is_not_null()).select(SPAN).unique()
    evidence = pl.concat(
        [
            found.filter(pl.col("fails") | pl.col("has_exception")),
            # an exception in a log may have been handled; one that names the span's error was not
            found.filter(
                pl.col("has_log"), ~pl.col("fails"), ~pl.col("has_exception"), ~pl.col("is_4xx")
            ).join(typed, on=SPAN, how="semi"),
        ]
    )
    stacks = (
        traces.events.filter(pl.col("exception_stacktrace").str.contains(r"\S"))
        .select(SPAN)
        .unique()
        .with_columns(pl.lit(value=True).alias("has_stack"))
    )
    last = (
        records.filter(pl.col("origin") != "log")
        .group_by(SPAN)
        .agg(pl.col("time").max().alias("exception_time"))
    )
    spans = traces.spans.join(evidence.select(SPAN), on=SPAN, how="semi").unique(
        SPAN, keep="first", maintain_order=True
    )
    failed = found.select(
        "trace_id",
        pl.col("span_id").alias("parent_span_id"),
        (pl.col("is_error") | pl.col("is_5xx")).alias("up_fails"),
    )
    return (
        evidence.join(spans, on=SPAN, how="inner")
        .join(stacks, on=SPAN, how="left")
        .join(last, on=SPAN, how="left")
        .join(failed, on=["trace_id", "parent_span_id"], how="left")
        .with_columns(pl.col("has_stack", "up_fails").fill_null(value=False))
    )


def _with_company(errors: pl.DataFrame) -> pl.DataFrame:
    """Add what the other failing spans of the same service and trace say."""
    place = ["trace_id", "service_name"]
    told = pl.col("has_exception") | pl.col("has_log")
    answered = (pl.col("kind") == "SERVER") & pl.col("http_response_status_code").is_not_null()
    return errors.with_columns(
        (told.sum().over(place) - told.cast(pl.UInt32)).gt(0).alias("told_elsewhere"),
        (pl.len().over(place) > 1).alias("accompanied"),
        answered.any().over(place).alias("answered"),
    )


def _check(errors: pl.DataFrame) -> pl.DataFrame:
    code = pl.col("http_response_status_code")
    told = pl.col("has_exception") | pl.col("has_log")
    error = pl.col("is_error")
    explicit_ok = pl.col("status_code") == "OK"
    answer = pl.col("is_4xx") & (pl.col("kind") == "SERVER")
    at_end = (pl.col("exception_time") >= pl.col("end_time")).fill_null(value=False)
    panic = pl.col("is_weak") & (pl.col("sdk_language") == "go") & at_end
    # Recording an exception sets no status, and one that was handled must not: what says that it
    # was not handled is that it left the span, that the caller failed, or that no answer was given.
    answered_well = (code < semconv.HTTP_SERVER_ERROR_MIN).fill_null(value=False)
    unheard = (pl.col("kind") == "SERVER") & code.is_null() & (pl.col("sdk_language") == "go")
    handled = (
        ~pl.col("escaped")
        & ~pl.col("up_fails")
        & (answered_well | pl.col("parent_span_id").is_not_null())
        & ~(panic & ~answered_well)
        & ~unheard
    )
    claims = pl.col("is_5xx") | (pl.col("is_weak") & ~handled) | pl.col("error_type").is_not_null()
    status_exempt = (
        pl.when(error)
        .then(pl.lit(None, pl.String))
        .when(answer)
        .then(pl.lit("4xx on a server span stays unset by convention"))
        .when(explicit_ok)
        .then(pl.lit("status was set OK: the error was handled"))
        .when(~claims)
        .then(pl.lit("nothing shows that the exception left the span: it may have been handled"))
    )
    call = (
        pl.col("kind").is_in(CALL_KINDS)
        | code.is_not_null()
        | pl.col("rpc_system").is_not_null()
        | pl.col("messaging_system").is_not_null()
    )
    exception_exempt = pl.when(~told & call).then(
        pl.lit("a call records its status; the exception, if any, stands on an inner span or log")
    )
    stack_exempt = pl.when(
        told & ~pl.col("has_stack") & pl.col("sdk_language").is_in(STACKLESS)
    ).then(pl.lit("this SDK records no stack unless asked to"))
    old = (
        pl.col("attributes").str.contains(_OLD_HTTP) & ~pl.col("attributes").str.contains(_NEW_HTTP)
    ).fill_null(value=False)
    version = pl.col("scope_schema_url").str.extract(r"/1\.(\d+)\.\d+$", 1).cast(pl.Int64)
    old = old | (version < ERROR_TYPE_SINCE).fill_null(value=False)
    untyped = pl.col("error_type").is_null() | (pl.col("error_type") == "")
    type_exempt = (
        pl.when(untyped & old)
        .then(pl.lit("conventions before error.type"))
        .when(untyped & status_exempt.is_not_null())
        .then(pl.lit("no error.type on what is no error"))
    )
    signature = (
        pl.when(panic & (pl.col("kind") != "SERVER") & pl.col("answered"))
        .then(pl.lit("recovered_panic"))
        .when((panic & ~handled) | (pl.col("is_weak") & unheard))
        .then(pl.lit("panic"))
        .when(pl.col("has_exception") & ~error & status_exempt.is_null())
        .then(pl.lit("event_without_status"))
        .when(
            pl.col("is_5xx")
            & (pl.col("kind") == "SERVER")
            & ~told
            & ~pl.col("told_elsewhere")
            & ~pl.col("accompanied")
        )
        .then(pl.lit("5xx_without_evidence"))
        .when(error & ~told & ~call)
        .then(pl.lit("status_without_event"))
    )
    reasons = [status_exempt, exception_exempt, stack_exempt, type_exempt]
    return errors.with_columns(
        (error | status_exempt.is_not_null()).alias("status_ok"),
        (told | exception_exempt.is_not_null()).alias("exception_ok"),
        (~told | pl.col("has_stack") | stack_exempt.is_not_null()).alias("stacktrace_ok"),
        (~untyped | type_exempt.is_not_null()).alias("error_type_ok"),
        signature.alias("signature"),
        pl.concat_str(reasons, separator="; ", ignore_nulls=True).replace("", None).alias("exempt"),
    )
