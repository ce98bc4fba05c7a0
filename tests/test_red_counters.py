import json

import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.exceptions import ParameterError, SourceError, UnknownFormatError
from tracelab.signals import red_from_metrics, red_from_prometheus

T0 = 1_767_571_200_000_000_000
MINUTE = 60 * 10**9


def point(minute, counts, *, status=200, start=0, temporality="CUMULATIVE", instance="i1", **more):
    return {
        "metric_name": "http.server.request.duration",
        "metric_type": "histogram",
        "unit": "s",
        "temporality": temporality,
        "start_time": T0 + start * MINUTE,
        "time": T0 + minute * MINUTE,
        "count": sum(counts),
        "explicit_bounds": [0.1, 0.25],
        "bucket_counts": counts,
        "flags": 0,
        "service_name": "auth",
        "service_instance_id": instance,
        "attributes": json.dumps({"http.route": "/a", "http.response.status_code": status}),
        **more,
    }


def table(*points):
    return schema.conform(pl.DataFrame(points, infer_schema_length=None), schema.METRIC_POINTS)


def whole(red):
    return red.filter(pl.col("span_name").is_null()).sort("time")


def test_cumulative_points_are_differenced_and_the_first_is_unknown():
    red = whole(
        red_from_metrics(table(point(1, [5, 5, 5]), point(2, [6, 7, 5]), point(3, [9, 7, 6])))
    )
    assert red["requests"].to_list() == [None, 3.0, 4.0]
    assert red["duration_counts"].to_list() == [None, [1.0, 2.0, 0.0], [3.0, 0.0, 1.0]]
    assert red["bucket_edges_ns"][0].to_list() == [100_000_000, 250_000_000]


def test_a_reset_counts_from_zero():
    points = [
        point(1, [5, 5, 5]),
        point(2, [6, 5, 5]),
        point(3, [2, 0, 0], start=2),
        point(4, [9, 9, 9], start=3),
    ]
    assert whole(red_from_metrics(table(*points)))["requests"].to_list() == [None, 1.0, 2.0, 27.0]


def test_delta_points_count_as_they_are_and_a_5xx_is_seen():
    points = [
        point(1, [5, 0, 0], temporality="DELTA"),
        point(1, [1, 0, 1], temporality="DELTA", status=503),
        point(2, [3, 0, 0], temporality="DELTA"),
    ]
    red = whole(red_from_metrics(table(*points)))
    assert red["requests"].to_list() == [7.0, 3.0]
    assert red["errors_5xx"].to_list() == [2.0, 0.0]


def test_instances_add_up_and_a_missing_minute_is_silent():
    points = [point(m, [m, 0, 0], instance=i) for i in ("a", "b") for m in (1, 2, 3, 8, 9)]
    assert whole(red_from_metrics(table(*points)))["requests"].to_list() == (
        [None, 2.0, 2.0, None, None, None, None, None, 2.0]
    )


def test_an_exponential_histogram_is_read_at_our_edges():
    # scale 0: buckets (2^i, 2^(i+1)] ms; all 8 requests between 64 and 128 ms.
    one = point(
        1,
        [8],
        temporality="DELTA",
        metric_type="exponential_histogram",
        unit="ms",
        scale=0,
        positive_offset=6,
        positive_bucket_counts=[8],
        zero_count=0,
    )
    counts = np.array(
        whole(red_from_metrics(table({**one, "bucket_counts": None, "explicit_bounds": None})))[
            "duration_counts"
        ][0].to_list()
    )
    edges = np.array(schema.DURATION_EDGES_NS) / 1e6
    assert counts.sum() == pytest.approx(8.0)
    assert counts[: np.searchsorted(edges, 64.0)].sum() == 0.0
    assert counts[np.searchsorted(edges, 128.0) + 1 :].sum() == 0.0


def test_a_point_without_a_recorded_value_is_no_point():
    points = [point(m, [m, 0, 0], flags=int(m == 3)) for m in range(1, 7)]
    assert whole(red_from_metrics(table(*points)))["requests"].to_list() == (
        [None, 1.0, None, 2.0, 1.0, 1.0]
    )


def test_bins_shorter_than_the_points_are_refused():
    with pytest.raises(ParameterError, match="every 60 s"):
        red_from_metrics(table(*(point(m, [m, 0, 0]) for m in range(1, 5))), every="30s")


def answer(*series):
    return {"status": "success", "data": {"resultType": "matrix", "result": list(series)}}


def counter(values, name="istio_requests_total", **labels):
    metric = {"__name__": name, "reporter": "destination", "destination_service_name": "auth"}
    return {
        "metric": {**metric, **labels},
        "values": [[T0 / 1e9 + 60 * (i + 1), str(v)] for i, v in enumerate(values)],
    }


def test_a_range_query_of_istio_counters_becomes_red():
    name = "istio_request_duration_milliseconds_bucket"
    text = json.dumps(
        answer(
            counter([10, 20, 5], response_code="200"),
            counter([1, 3, 3], response_code="503"),
            counter([99, 999, 9999], response_code="200", reporter="source"),
            counter([10, 18, 4], name=name, le="100"),
            counter([11, 23, 8], name=name, le="250.0"),
            counter([11, 23, 8], name=name, le="+Inf"),
        )
    )
    red = whole(red_from_prometheus(text, metrics="istio"))
    assert red["requests"].to_list() == [None, 12.0, 5.0]
    assert red["errors_5xx"].to_list() == [None, 2.0, 0.0]
    assert red["bucket_edges_ns"][0].to_list() == [100_000_000, 250_000_000]
    assert red["duration_counts"][1].to_list() == [8.0, 4.0, 0.0]


@pytest.mark.parametrize(
    "body", ["<html>", "[]", '{"status":"error"}', '{"data":{"resultType":"vector"}}']
)
def test_an_answer_that_is_no_matrix_is_refused(body):
    with pytest.raises(UnknownFormatError, match="query_range"):
        red_from_prometheus(body)


def test_no_points_give_an_empty_table():
    assert red_from_metrics(schema.empty(schema.METRIC_POINTS)).schema == schema.RED
    assert red_from_prometheus(answer()).height == 0


def test_a_dump_reads_as_the_range_query_of_the_same_counters(tmp_path):
    series = [
        counter([10, 20, 5], response_code="200", operation='a}"\\\n b'),
        counter([1, 3, 3], response_code="503"),
        counter([10, 18, 4], name="istio_request_duration_milliseconds_bucket", le="100"),
        counter([7, 8, 9], name="another_bucket", le="100"),
    ]
    plain, named = [], ["# TYPE istio_requests counter"]
    for one in series:
        labels = dict(one["metric"])
        text = ", ".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
        name = labels.pop("__name__")
        short = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
        plain += [f"{{{text}}} {v} {t * 1000:.0f}" for t, v in one["values"]]
        named += [f"{name}{{{short}}} {v} {t:.3f}" for t, v in one["values"]]
    plain += ['{__name__="up"} NaN 1767571260000', '{__name__="h"} {count:3, sum:2} 1767571260000']
    wanted = red_from_prometheus(answer(*series), metrics="istio")
    assert whole(wanted)["duration_counts"][1].to_list() == [8.0, 4.0]
    (tmp_path / "dump").write_text("\n".join(plain))
    for given in ("\n".join(plain), "\n".join([*named, "# EOF"]).encode(), tmp_path / "dump"):
        assert red_from_prometheus(given, metrics="istio").equals(wanted)
    assert red_from_prometheus("# EOF\n").height == 0


def test_a_file_that_is_not_there_and_text_that_is_no_dump_are_refused(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        red_from_prometheus(tmp_path / "none.json")
    with pytest.raises(UnknownFormatError, match="promtool tsdb dump-openmetrics"):
        red_from_prometheus("metrics.txt")


def test_points_dated_1970_make_no_grid_of_decades():
    points = [point(m, [m, m, m]) for m in range(1, 40)]
    stray = point(1, [1, 1, 1], instance="i2") | {"time": 60_000_000_000}
    assert red_from_metrics(table(*points, stray)).height < 100
