"""Later and parallel attempts: which failed span was made good by a sibling."""

from typing import Final

import polars as pl

_SECONDS_NS: Final = 1_000_000_000
TOLERANCE_NS: Final = 1_000_000
"""How far a later attempt may start before the failed one has ended: one process, one
clock, but clocks of a millisecond exist."""

MIN_LOOP: Final = 3
"""Successful calls of the same operation, before and after a failed one, that make a loop."""

MIN_CALLERS: Final = 5
_STEADY: Final = 0.9
"""Callers, and the share of them that agree in how many calls succeeded, from which failed calls
count as repeated: whoever fails more often calls more often, until as many succeeded as ever."""

_TARGETS: Final = (
    "url.full",
    "http.url",
    "url.path",
    "http.target",
    "db.query.text",
    "db.statement",
    "messaging.message.id",
    "rpc.method",
)
_METHOD_ALONE: Final = r"^(?:HTTP )?(?:GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS)$"
_CANCELLED: Final = r"(?i)cancel|abort"


def attribute(key: str) -> pl.Expr:
    """Read one text or number attribute out of the JSON text of `attributes`."""
    escaped = key.replace(".", r"\.")
    pattern = rf'"{escaped}":\s?\[?(?:"((?:[^"\\]|\\.)*)"|(-?[0-9.]+))'
    column = pl.col("attributes")
    return pl.coalesce(column.str.extract(pattern, 1), column.str.extract(pattern, 2))


def target() -> pl.Expr:
    """Return what a call was aimed at, host aside: attempts of one request agree in it."""
    found = pl.coalesce([attribute(key) for key in _TARGETS])
    return found.str.replace(r"^[a-z]+://[^/]*", "")


def peer() -> pl.Expr:
    """Return whom a call went to, as a name: replicas by number, and addresses, left out.

    A name of the operation that is the method alone says nothing; whom it asked then decides
    whether two calls can be attempts of one request.
    """
    host = pl.col("server_address").str.to_lowercase().str.split(".").list.first()
    name = host.str.replace_all(r"[-_]?[0-9a-f]*[0-9][0-9a-f]*", "")
    bare = pl.col("name").str.contains(_METHOD_ALONE)
    return pl.when(bare & (name.str.len_bytes() > 0)).then(name)


def find_recoveries(failed: pl.DataFrame, siblings: pl.DataFrame) -> pl.DataFrame:
    """Find the sibling that made a failed span good.

    Parameters
    ----------
    failed : pl.DataFrame
        Columns row, up_trace, up_span, span_id, kind, service_name, operation, start, end
        (ns), target, peer, resend, settings, cancelled, up_end.
    siblings : pl.DataFrame
        All children of the same parents, the same columns and ``succeeded``.

    Returns
    -------
    pl.DataFrame
        row, looped, recovered_by, recovery_confidence, recovery_reason: rows that were made
        good, and those that one of many like calls followed (``looped``, nothing made good).
    """
    key = ["up_trace", "up_span", "kind", "service_name", "operation"]
    others = siblings.filter(pl.col("succeeded")).select(
        *key,
        pl.col("span_id").alias("other"),
        pl.col("start").alias("other_start"),
        pl.col("end").alias("other_end"),
        pl.col("target").alias("other_target"),
        pl.col("resend").alias("other_resend"),
        pl.col("settings").alias("other_settings"),
        pl.col("peer").alias("other_peer"),
    )
    later = pl.col("other_start") >= pl.col("end") - TOLERANCE_NS
    earlier = pl.col("other_end") <= pl.col("start") + TOLERANCE_NS
    same = pl.col("target") == pl.col("other_target")
    resent = pl.col("other_resend").fill_null(0) > pl.col("resend").fill_null(0)
    alike = (same | pl.col("target").is_null()) & pl.col("settings").eq_missing(
        pl.col("other_settings")
    )
    same_peer = (pl.col("peer") == pl.col("other_peer")).fill_null(value=True)
    pairs = failed.join(others, on=key, how="inner", nulls_equal=True).filter(
        (same.fill_null(value=True) & (same_peer | same.is_not_null())) | (resent & later),
        pl.col("other") != pl.col("span_id"),
    )
    facts = (
        pairs.sort("row", "other_start", "other")
        .group_by("row", maintain_order=True)
        .agg(
            pl.col("other").filter(later).first().alias("later"),
            (resent & later & same.fill_null(value=True)).any().alias("resent"),
            (resent & later).any().alias("resent_elsewhere"),
            (same.fill_null(value=False) & later).any().alias("same_target"),
            later.sum().alias("n_later"),
            (earlier & ~later).sum().alias("n_earlier"),
            pl.col("other").filter(~later & ~earlier & alike).first().alias("beside"),
            (~later & ~earlier & alike).sum().alias("n_beside"),
            pl.len().alias("n_success"),
            pl.col("cancelled").first(),
        )
    )
    hedged = pl.col("later").is_null() & (pl.col("n_beside") == 1) & (pl.col("n_success") == 1)
    hedged = hedged | (pl.col("later").is_null() & (pl.col("n_beside") > 0) & pl.col("cancelled"))
    # attempts end with the first success: where the call is made many times over, one after
    # the other, the next one is the next item's as long as nothing says otherwise
    looped = (
        ~pl.col("steady").fill_null(value=False)
        & (pl.col("n_earlier") + pl.col("n_later") >= MIN_LOOP)
        & ~pl.any_horizontal("resent", "resent_elsewhere", "same_target").fill_null(value=False)
        & ~hedged
    )
    whose = failed.select("row", *key).join(_steady(siblings, key), on=key, nulls_equal=True)
    return (
        facts.join(whose.select("row", "steady"), on="row", how="left", maintain_order="left")
        .with_columns(hedged.alias("hedged"), looped.alias("looped"))
        .filter(pl.col("later").is_not_null() | pl.col("hedged"))
        .select(
            "row",
            "looped",
            pl.when(~pl.col("looped"))
            .then(pl.coalesce("later", pl.col("beside")))
            .alias("recovered_by"),
            pl.when("hedged")
            .then(pl.when("cancelled").then(0.85).otherwise(0.6))
            .when("resent")
            .then(0.97)
            .when("same_target")
            .then(0.95)
            .when("resent_elsewhere")
            .then(0.8)
            .when((pl.col("n_earlier") == 0) & (pl.col("n_later") == 1))
            .then(0.88)
            .when(pl.col("n_earlier") == 0)
            .then(0.65)
            .when("steady")
            .then(0.8)
            .otherwise(0.55)
            .alias("recovery_confidence"),
            pl.when("hedged")
            .then(pl.lit("a parallel attempt of the same operation succeeded"))
            .when("resent")
            .then(pl.lit("a later attempt with a higher resend count succeeded"))
            .when(pl.col("resent_elsewhere") & ~pl.col("same_target"))
            .then(pl.lit("a later attempt with a higher resend count succeeded at another target"))
            .when("same_target")
            .then(pl.lit("a later sibling with the same operation and target succeeded"))
            .when(pl.col("steady").fill_null(value=False) & (pl.col("n_earlier") > 0))
            .then(pl.lit("callers repeat this call until as many succeeded as ever"))
            .otherwise(pl.lit("a later sibling with the same operation succeeded"))
            .alias("recovery_reason"),
        )
    )


def _steady(siblings: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """Tell of each caller's calls whether, over all callers, failed ones are made up for."""
    good = pl.col("succeeded").fill_null(value=False)
    callers = siblings.group_by(key).agg(
        good.sum().alias("good"), (~good).sum().alias("bad"), pl.len().alias("all")
    )

    def agreed(name: str) -> pl.Expr:
        """Share of the callers that have the commonest number of these calls."""
        return pl.col(name).value_counts().struct.field("count").max() / pl.len()

    laws = callers.group_by(key[2:]).agg(
        (
            (pl.len() >= MIN_CALLERS)
            & (pl.col("bad").n_unique() > 1)
            & (agreed("good") >= _STEADY)
            & (agreed("all") < _STEADY)
        ).alias("steady")
    )
    return callers.join(laws, on=key[2:], how="left", nulls_equal=True)


def settings() -> pl.Expr:
    """Attributes without what differs between parallel attempts: peers, threads, counts."""
    volatile = (
        r'"(?:thread|network|server|net|url|http|code|client|peer|user_agent)[._][^"]*":'
        r'(?:"(?:[^"\\]|\\.)*"|[^,}"]*),?'
    )
    return pl.col("attributes").str.replace_all(volatile, "").str.strip_chars(",{} ")


def cancelled(*texts: pl.Expr) -> pl.Expr:
    """Whether one of the texts speaks of a cancelled attempt."""
    return pl.any_horizontal(text.str.contains(_CANCELLED).fill_null(value=False) for text in texts)
