"""The verdict of each hop, from what both spans say and what else was done about it."""

from typing import Final

import polars as pl

from tracelab import schema, semconv
from tracelab.errors_chain.comparing import POSITIVE
from tracelab.errors_chain.retries import attribute

SURE_RECOVERY: Final = 0.95
"""Least confidence of a recovery that holds against a parent with status ERROR."""

_CANCELLED: Final = (
    r"(?i)context cancell?ed|(?:task|operation|request|call)\s?(?:was )?(?:cancell?ed|aborted)"
    r"|Cancell?ed(?:Error|Exception)|CancellationException|AbortError|^cancell?ed$"
)
"""How Go, Python, Java, .NET, Node and gRPC name work that its caller gave up."""

_CALL_KINDS: Final = ["SERVER", "CLIENT", "CONSUMER", "PRODUCER"]

Case = tuple[pl.Expr, pl.Expr | str, pl.Expr | float, pl.Expr | str]


def judge(hops: pl.DataFrame) -> pl.DataFrame:
    """Add verdict, confidence and reasons; rows that are no failure at all fall away.

    Parameters
    ----------
    hops : pl.DataFrame
        Rows with both sides' evidence, the relation of their texts, the recovery, and
        what stands further up (``above_relation``).

    Returns
    -------
    pl.DataFrame
        The rows with verdict, confidence, reason, reason_more, reason_bridge.
    """
    cases = [*_borders(), *_weak(), *_failing_parent(), *_quiet_parent()]
    verdict, confidence, reason = _none(pl.String), _none(pl.Float64), _none(pl.String)
    for condition, word, probability, why in reversed(cases):
        met = pl.when(condition.fill_null(value=False))
        verdict = met.then(pl.lit(word) if isinstance(word, str) else word).otherwise(verdict)
        chance = pl.lit(probability) if isinstance(probability, float) else probability
        confidence = met.then(chance).otherwise(confidence)
        reason = met.then(pl.lit(why) if isinstance(why, str) else why).otherwise(reason)
    bridged = pl.col("via_break_id").is_not_null()
    told = pl.concat_str(
        pl.lit("parent "),
        pl.col("up_name").fill_null("?"),
        pl.lit(": status "),
        pl.col("up_status_code").fill_null("UNSET"),
        pl.concat_str(pl.lit(", HTTP "), pl.col("up_http_response_status_code")).fill_null(""),
        pl.when("up_has_log").then(pl.lit(", exception in a log")).otherwise(pl.lit("")),
    )
    return (
        hops.with_columns(
            verdict.alias("verdict"), confidence.alias("confidence"), reason.alias("reason")
        )
        .filter(pl.col("verdict").is_not_null())
        .with_columns(
            pl.when("up_present").then(told).alias("reason_more"),
            (pl.col("confidence") * pl.col("bridge")).alias("confidence"),
            pl.when(bridged)
            .then(pl.lit("the parent is proposed, not recorded: the trace breaks here"))
            .alias("reason_bridge"),
        )
    )


def _none(dtype: schema.ColumnType) -> pl.Expr:
    return pl.lit(None, dtype)


def _borders() -> list[Case]:
    """Hops whose other side is not in the capture, or shows the very same answer."""
    code = pl.col("http_response_status_code")
    # 500 is what any exception is answered with: two that were recorded tell more
    both_tell = pl.all_horizontal("has_exception", "up_has_exception") & (code == 500)
    local = ~pl.col("boundary").is_in(["network", "queue"])
    return [
        (
            ~pl.col("up_present"),
            "not_determinable",
            0.95,
            "the parent span is not in the capture",
        ),
        (
            (code == pl.col("up_http_response_status_code"))
            & (code >= 400)
            & pl.any_horizontal("up_is_error", "up_is_4xx")
            & ~(both_tell & local)
            & ~pl.col("relation").is_in(POSITIVE).fill_null(value=False),
            "kept",
            0.9,
            "both spans show the same HTTP status",
        ),
    ]


def _shown() -> pl.Expr:
    return pl.any_horizontal("up_is_error", "up_is_5xx", "up_has_exception")


def _weak() -> list[Case]:
    """Child with an exception that left it but no status: a panic, or a forgotten status."""
    weak = pl.col("is_weak")
    arrived = pl.col("up_is_error") & pl.col("relation").is_in(POSITIVE)
    return [
        (
            weak & arrived & pl.col("holds_arrival"),
            pl.col("relation"),
            pl.col("relation_confidence") * 0.95,
            pl.col("relation_reason"),
        ),
        (
            weak & (_shown() | pl.col("above_relation").is_not_null()),
            "status_lost",
            0.85,
            "the exception left the child, whose status was never set",
        ),
        (weak, _none(pl.String), _none(pl.Float64), _none(pl.String)),
    ]


def _failing_parent() -> list[Case]:
    """Parent has status ERROR: what it tells decides."""
    error = pl.col("up_is_error")
    positive = pl.col("relation").is_in(POSITIVE)
    remote = pl.col("boundary").is_in(["network", "queue"])
    typed = pl.any_horizontal(
        pl.col("up_kind").is_in(_CALL_KINDS),
        pl.col("up_http_response_status_code").is_not_null(),
        pl.col("up_rpc_system").is_not_null(),
        pl.col("up_error_type").is_not_null(),
    )
    relation = (pl.col("relation"), pl.col("relation_confidence"), pl.col("relation_reason"))
    silent = ~pl.col("up_tells")
    # a loop calls the same operation again, too: where the parent failed, only a resend,
    # the same target, or another child that explains the failure makes a recovery likely
    made_good = pl.col("recovered_by").is_not_null() & (
        (pl.col("recovery_confidence") >= SURE_RECOVERY) | pl.col("up_explained") | ~pl.col("tells")
    )
    recovered = ("recovered", pl.col("recovery_confidence") * 0.9, pl.col("recovery_reason"))
    text_kept = pl.col("relation").is_in(["kept", "wrapped", "truncated"])
    return [
        (error & positive & (text_kept | ~remote), *relation),
        (error & made_good, *recovered),
        (
            error & remote & (pl.col("tells") | pl.col("up_tells")),
            "kept",
            0.8,
            "the failure crossed to the caller as a status; texts do not cross by themselves",
        ),
        (
            error & pl.col("tells") & ~silent & pl.col("up_explained") & ~positive,
            "replaced",
            0.7,
            "the parent reports the error of another child",
        ),
        (error & pl.col("tells") & ~silent, *relation),
        (
            error & silent & typed,
            "kept",
            0.8,
            "the parent's status says so; calls record a status, not the text",
        ),
        (
            error & silent & pl.col("tells"),
            "status_lost",
            0.85,
            "the parent has status ERROR but neither exception, message nor error.type",
        ),
        (error, "kept", 0.75, "both spans have status ERROR; the child told no text to compare"),
    ]


def _callers_fault() -> pl.Expr:
    """Whether a gRPC code says that the request, not the server, was at fault (a 4xx there)."""
    code = pl.coalesce(
        [attribute(f"rpc.{name}.status_code") for name in ("grpc", "response")]
    ).str.to_uppercase()
    faults = [*map(str, semconv.GRPC_SERVER_ERRORS), *semconv.GRPC_SERVER_ERRORS.values()]
    return code.is_not_null() & ~code.is_in([*faults, "0", "OK"])


def _was_cancelled() -> pl.Expr:
    """Whether the child tells of a cancellation: the other side gave up, nothing went wrong."""
    texts = ("raw_type", "raw_message", "status_message", "error_type")
    return pl.any_horizontal(
        pl.col(name).str.contains(_CANCELLED).fill_null(value=False) for name in texts
    )


def _quiet_parent() -> list[Case]:
    """Parent without status ERROR: lost on the way, made good, or swallowed."""
    positive = pl.col("relation").is_in(POSITIVE)
    made_good = pl.col("recovered_by").is_not_null()
    recovered = ("recovered", pl.col("recovery_confidence"), pl.col("recovery_reason"))
    # recorded after the later attempt had ended well: that attempt did not make it good
    told_later = positive & (pl.col("told_at") > pl.col("recovered_at")).fill_null(value=False)
    explicit = pl.col("up_status_code") == "OK"
    called = (pl.col("up_kind") == "CLIENT") & (pl.col("kind") == "SERVER")
    queued = (pl.col("boundary") == "queue") | (
        pl.col("up_kind").is_in(["PRODUCER"]) | (pl.col("kind") == "CONSUMER")
    )
    outlives = (pl.col("end_time") > pl.col("up_end_time")) & ~called
    above = pl.col("above_relation")
    return [
        (
            pl.col("up_is_5xx"),
            "status_lost",
            0.9,
            "the parent answered with 5xx but its status is not ERROR",
        ),
        (made_good & ~told_later, *recovered),
        (
            pl.col("up_is_4xx"),
            "kept",
            0.8,
            "the parent answered with 4xx, whose status stays unset by convention",
        ),
        (
            queued,
            "not_determinable",
            0.9,
            "who sends a message does not learn of its consumer's errors",
        ),
        (
            pl.col("up_has_exception") & positive & explicit,
            "swallowed",
            0.75,
            "the parent recorded the error and then set status OK",
        ),
        (
            pl.col("up_has_exception") & positive,
            "status_lost",
            0.92,
            "the parent records this exception, but its status is not ERROR",
        ),
        (
            outlives & above.is_null(),
            "not_determinable",
            0.8,
            "the child ended after its parent, which could not know of the error",
        ),
        (
            above.is_in(POSITIVE),
            "status_lost",
            0.88,
            "the error stands again further up; this span let it pass without a word",
        ),
        (
            pl.col("up_has_exception"),
            "status_lost",
            0.6,
            "the parent records an exception, but its status is not ERROR",
        ),
        (
            pl.col("up_error_type").is_not_null(),
            "status_lost",
            0.75,
            "the parent has error.type, but its status is not ERROR",
        ),
        (
            pl.col("is_4xx") | _callers_fault(),
            "not_determinable",
            0.7,
            "a 4xx answer, or its gRPC like, may be an ordinary outcome for the caller",
        ),
        (
            _was_cancelled(),
            "not_determinable",
            0.7,
            "the work was cancelled, which its caller may have done on purpose",
        ),
        (
            above.is_not_null() & ~pl.col("work_after").fill_null(value=False),
            "status_lost",
            0.6,
            "nothing was done after the failure, and a span further up failed",
        ),
        (
            pl.col("fallback_by").is_not_null(),
            "recovered",
            0.75,
            "a sibling whose name says fallback succeeded afterwards",
        ),
        (
            pl.col("looped").fill_null(value=False),
            "swallowed",
            pl.when(above.is_not_null()).then(0.55).otherwise(0.6),
            "one call of a loop failed; none of the others is known to be its next attempt",
        ),
        (
            pl.lit(value=True),
            "swallowed",
            pl.when(above.is_not_null())
            .then(0.65)
            .when(pl.col("work_after").fill_null(value=False))
            .then(0.85)
            .otherwise(0.92),
            "the child failed, its parent shows no error and ended well",
        ),
    ]
