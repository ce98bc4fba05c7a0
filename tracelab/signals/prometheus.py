"""RED out of Prometheus: answers of range queries, and text that promtool dumps from a TSDB."""

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab.exceptions import SourceError, UnknownFormatError
from tracelab.signals.counters import SAMPLES, assemble
from tracelab.signals.grid import duration_ns
from tracelab.signals.metric_names import MetricNames, metric_names

Answer = str | bytes | Mapping[str, Any] | os.PathLike[str]
Labels = dict[str, str]

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_LABEL: Final = re.compile(rf"([A-Za-z_]\w*|{_QUOTED})\s*=\s*({_QUOTED})")
_LINE: Final = r"^(.+)\s(\S+)\s(-?\d+(?:\.\d+)?)$"


def red_from_prometheus(
    *responses: Answer,
    every: str = "1m",
    metrics: str | MetricNames = "spanmetrics",
) -> pl.DataFrame:
    """Count requests, errors and durations from raw counters that a Prometheus holds.

    Parameters
    ----------
    *responses : str, bytes, mapping or path
        Answers of ``/api/v1/query_range`` (or ``/api/v1/query`` with a range selector), or what
        ``promtool tsdb dump`` or ``promtool tsdb dump-openmetrics`` wrote, for the counter of
        requests and, if durations are wanted, the ``_bucket`` series; raw counters, not rates.
        A path object names a file with one of these, a plain string is the text itself.
    every : str
        Bin; not shorter than the step.
    metrics : str or MetricNames
        What the metrics and labels are called: istio, spanmetrics, http_server, or own names.

    Returns
    -------
    pl.DataFrame
        Schema `RED`. A fall of a counter is a reset; a bin without a sample of a service is
        null. Native histograms and staleness markers are left out.

    Raises
    ------
    UnknownFormatError
        If an answer is neither a matrix of Prometheus nor a dump.
    SourceError
        If a file cannot be read.
    ParameterError
        If `every` is no duration or shorter than the step, or the preset is unknown.
    """
    names = metric_names(metrics)
    bin_ns = duration_ns(every, name="every")
    serves = _matchers(names.server)
    failure = _matchers(names.failures.get("5xx", ""))
    error = _matchers(names.failures.get("error", names.failures.get("5xx", "")))
    tables = [pl.DataFrame(schema=SAMPLES)]
    for number, (labels, samples) in enumerate(s for answer in responses for s in _series(answer)):
        is_bucket = labels.get("__name__") == names.duration_bucket or "le" in labels
        wanted = names.duration_bucket if is_bucket else names.requests
        if labels.get("__name__", wanted) != wanted:
            continue
        if not all(accepts(labels) for accepts in serves):
            continue
        edge = None
        if is_bucket:
            bound = float(labels.get("le", "nan"))
            if not np.isfinite(bound):
                continue
            edge = round(bound * names.unit_s * 1e9)
        tables.append(
            samples.select(
                pl.lit(labels.get(names.service_label), pl.String).alias("service_name"),
                pl.lit(labels.get(names.operation_label), pl.String).alias("span_name"),
                pl.lit(number, pl.UInt64).alias("series"),
                "time",
                pl.lit(None, pl.Int64).alias("start"),
                pl.lit(False).alias("delta"),
                pl.lit(bool(error) and all(f(labels) for f in error)).alias("error"),
                pl.lit(bool(failure) and all(f(labels) for f in failure)).alias("error_5xx"),
                pl.lit(edge, pl.Int64).alias("edge"),
                "value",
            )
        )
    together = pl.concat(tables)
    spoke = together.select("service_name", ((pl.col("time") - 1) // bin_ns).alias("bin")).unique()
    return assemble(together, bin_ns, spoke)


def _series(answer: Answer) -> Iterator[tuple[Labels, pl.DataFrame]]:
    """Yield labels and samples (time in ns, value) of every series of one answer."""
    body: Any = answer
    if isinstance(answer, os.PathLike):
        try:
            body = Path(answer).read_bytes()
        except OSError as problem:
            raise SourceError(f"cannot read {answer}: {problem.strerror}") from problem
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            yield from _dumped(body)
            return
    for one in _matrix(body):
        samples = [(t, float(v)) for t, v in one.get("values", []) if v != "NaN"]
        yield (
            one.get("metric", {}),
            pl.DataFrame(
                {
                    "time": [round(t * 1e3) * 10**6 for t, _ in samples],
                    "value": [v for _, v in samples],
                },
                schema={"time": pl.Int64, "value": pl.Float64},
            ),
        )


def _matrix(body: Any) -> list[dict[str, Any]]:
    part = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(part, Mapping) or part.get("resultType") != "matrix":
        status = body.get("status") if isinstance(body, Mapping) else type(body).__name__
        raise UnknownFormatError(
            f"the answer (status {status!r}) holds no matrix; ask /api/v1/query_range for the raw "
            "counters"
        )
    return list(part.get("result", []))


def _dumped(text: str) -> Iterator[tuple[Labels, pl.DataFrame]]:
    """Yield the series of a dump: labels, value and time on one line per sample."""
    lines = pl.Series("line", text.split("\n"), dtype=pl.String).str.strip_chars(" \r\t")
    lines = lines.filter((lines != "") & ~lines.str.starts_with("#"))
    parts = lines.str.extract_groups(_LINE).struct.unnest()
    parts.columns = ["head", "value", "time"]
    parts = parts.drop_nulls("head")
    if len(lines) and not parts.height:
        raise UnknownFormatError(
            f"the text that begins with {text.strip()[:40]!r} is neither an answer of "
            "/api/v1/query_range nor a dump; run promtool tsdb dump-openmetrics, and pass a file "
            "as a pathlib.Path"
        )
    # A plain dump has milliseconds and the name among the labels, OpenMetrics has seconds.
    plain = pl.col("head").str.starts_with("{")
    moment = pl.col("time").cast(pl.Float64) * pl.when(plain).then(1.0).otherwise(1e3)
    samples = parts.select(
        "head",
        (moment.round().cast(pl.Int64) * 10**6).alias("time"),
        pl.col("value").cast(pl.Float64, strict=False),
    ).filter(pl.col("value").is_finite())
    for (head,), part in samples.partition_by("head", as_dict=True, maintain_order=True).items():
        yield _labels(str(head)), part.select("time", "value")


def _labels(head: str) -> Labels:
    name, _, inside = head.partition("{")
    found = {_unquoted(key): _unquoted(value) for key, value in _LABEL.findall(inside)}
    return {"__name__": name.strip(), **found} if name else found


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    # Go writes the escapes that Python reads.
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text[1:-1]


def _matchers(text: str) -> list[Any]:
    found = re.findall(r'([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"', text)
    accepts: list[Any] = []
    for label, operator, value in found:
        pattern = re.compile(value if "~" in operator else re.escape(value))
        wanted = not operator.startswith("!")
        accepts.append(
            lambda labels, label=label, pattern=pattern, wanted=wanted: (
                bool(pattern.fullmatch(labels.get(label, ""))) == wanted
            )
        )
    return accepts
