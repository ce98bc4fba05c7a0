"""Figures by their content: what is drawn, where, in which colour, and said in which words."""

import plotly.graph_objects as go
import polars as pl
import pytest
from building import Capture, span_id, table, trace_id

import tracelab as tl
from tracelab import plots, schema
from tracelab.exceptions import SchemaError, UnknownTraceError
from tracelab.plots.notebook import OfflineRenderer, script_json
from tracelab.plots.style import BLUE, GREEN, ORANGE, SEVERITY_COLOR, VERMILION, label
from tracelab.traceset import TraceSet

HOSTILE = "<script>alert(1)</script>&amp;$x$\x00\u202e" + "x" * 10_000
DEFAULT_EDGES = [5_000_000, 50_000_000, 500_000_000]


def named(figure, name):
    found = [trace for trace in figure.data if trace.name == name]
    assert len(found) == 1, [trace.name for trace in figure.data]
    return found[0]


def said(figure):
    return " ".join(note.text or "" for note in figure.layout.annotations)


@pytest.fixture
def shop():
    """One trace: web calls bank, which fails; one span names a parent that is absent."""
    return (
        Capture()
        .span(1, 1, name="buy", service="web", kind="CLIENT", duration=100)
        .span(
            1, 2, 1, name="charge", service="bank", kind="SERVER", start=10, duration=50,
            status_code="ERROR", status_message="refused",
        )
        .span(1, 3, 99, name="lost child", service="bank", start=20, duration=5)
        .traces()
    )  # fmt: skip


def break_rows(*rows):
    base = {
        "break_id": "b", "kind": "orphan_span", "cause": "unknown", "boundary": "network",
        "severity": "warning", "confidence": 0.9, "trace_id": trace_id(1), "span_id": span_id(3),
        "service_name": "bank", "from_service": "web", "to_service": "bank",
        "evidence": ["its parent is absent"], "alternatives": ["export_failure"],
    }  # fmt: skip
    return table([base | row for row in rows], schema.BREAKS)


def test_waterfall_has_a_bar_per_span_at_its_offset_and_length(shop):
    figure = plots.waterfall(shop, trace_id(1))
    web, bank = named(figure, "web"), named(figure, "bank")
    assert (list(web.base), list(web.x)) == ([0.0], [100.0])
    assert sorted(zip(bank.base, bank.x, strict=True)) == [(10.0, 50.0), (20.0, 5.0)]
    assert [trace_id(1), span_id(2)] in [list(pair) for pair in bank.customdata]


def test_waterfall_hover_holds_the_ids(shop):
    text = " ".join(named(plots.waterfall(shop, trace_id(1)), "bank").hovertext)
    assert span_id(2) in text
    assert trace_id(1) in text
    assert f"parent {span_id(99)}" in text


def test_waterfall_marks_errors_at_their_end_and_breaks_at_their_start(shop):
    figure = plots.waterfall(shop, trace_id(1), breaks=break_rows({}))
    assert list(named(figure, "status ERROR").x) == [60.0]
    mark = named(figure, "break (warning)")
    assert list(mark.x) == [20.0]
    assert mark.marker.color == SEVERITY_COLOR["warning"]
    assert "its parent is absent" in mark.hovertext[0]
    assert "not excluded: export_failure" in mark.hovertext[0]


def test_waterfall_joins_a_proposed_parent_of_the_same_trace_by_a_dashed_line(shop):
    proposed = {"proposed_trace_id": trace_id(1), "proposed_span_id": span_id(2)}
    line = named(plots.waterfall(shop, trace_id(1), breaks=break_rows(proposed)), "proposed parent")
    assert line.line.dash == "dash"
    assert list(line.x) == [20.0, 20.0, None]


def test_waterfall_draws_a_detached_trace_below_its_probable_caller():
    traces = (
        Capture()
        .span(1, 1, service="web", name="GET /", duration=100)
        .span(2, 7, service="mail", name="send", start=30, duration=30)
        .span(3, 8, service="other", name="else", start=30, duration=30)
        .traces()
    )
    tie = {
        "kind": "detached_root", "trace_id": trace_id(2), "span_id": span_id(7),
        "proposed_trace_id": trace_id(1), "proposed_span_id": span_id(1),
    }  # fmt: skip
    for shown in (1, 2):
        figure = plots.waterfall(traces, trace_id(shown), breaks=break_rows(tie))
        assert "and 1 that probably belongs to it" in figure.layout.title.text
        assert list(named(figure, "mail").base) == [30.0]
        assert list(named(figure, "mail").y) == [1]
        assert list(named(figure, "proposed parent").y) == [0, 1, None]
        assert "other" not in {trace.name for trace in figure.data}


def test_waterfall_outlines_the_critical_path(shop):
    line = named(plots.waterfall(shop, trace_id(1), critical_path=[span_id(2)]), "critical path")
    assert list(line.x) == [10.0, 60.0, None]


def test_waterfall_says_how_many_spans_it_leaves_out(shop):
    figure = plots.waterfall(shop, trace_id(1), max_spans=2)
    assert "first 2 of 3 spans" in figure.layout.title.text
    assert sum(len(trace.x) for trace in figure.data if trace.type == "bar") == 2


def test_waterfall_of_an_unknown_trace_is_refused(shop):
    with pytest.raises(UnknownTraceError):
        plots.waterfall(shop, trace_id(9))


def test_span_graph_puts_children_one_step_right_of_their_parent(shop):
    spans = named(plots.span_graph(shop, trace_id(1)), "span")
    place = dict(zip(spans.text, spans.x, strict=True))
    assert place["bank · charge"] == place["web · buy"] + 1


def test_service_map_writes_the_broken_share_on_the_hop(shop):
    figure = plots.service_map(tl.span_edges(shop), break_rows({}))
    hop = next(trace for trace in figure.data if trace.line.color == VERMILION)
    assert "50.0% broken" in hop.text
    assert "1 intact, 1 broken" in hop.hovertext
    services = figure.data[-1]
    place = dict(zip(services.text, services.x, strict=True))
    assert place["web"] < place["bank"]


def test_service_map_without_calls_says_so(shop):
    empty = schema.empty(schema.EDGES)
    assert "No call" in said(plots.service_map(empty, schema.empty(schema.BREAKS)))


def test_break_matrix_counts_per_hop_and_cause():
    rows = break_rows({}, {"break_id": "c"}, {"from_service": "a", "cause": "sampled_out"})
    figure = plots.break_matrix(rows)
    heat = figure.data[0]
    cell = heat.z[list(heat.y).index("web → bank")][list(heat.x).index("orphan_span: unknown")]
    assert cell == 2
    assert len(heat.y) == 2


def test_break_matrix_leaves_legal_rows_out_unless_asked():
    rows = break_rows({"severity": "info", "kind": "late_child"})
    assert "No break" in said(plots.break_matrix(rows))
    assert plots.break_matrix(rows, include_info=True).data[0].z[0][0] == 1


def test_cohorts_draws_rates_with_intervals_and_colours_the_worse():
    rates = pl.DataFrame(
        {
            "dimension": ["sdk", "sdk"], "cohort": ["go 1.0", "go 1.1"], "checked": [100, 100],
            "broken": [2, 30], "rate": [0.02, 0.3], "rate_low": [0.01, 0.2],
            "rate_high": [0.07, 0.4], "worse": [False, True],
        }
    )  # fmt: skip
    points = plots.cohorts(rates).data[0]
    assert list(points.y) == ["sdk: go 1.1", "sdk: go 1.0"]
    assert list(points.marker.color) == [VERMILION, BLUE]
    assert points.error_x.array[0] == pytest.approx(0.1)
    assert points.error_x.arrayminus[1] == pytest.approx(0.01)


def test_cohorts_takes_the_table_of_break_cohorts_as_it_is():
    traces = tl.load_example()
    rates = tl.break_cohorts(traces, tl.find_breaks(traces))
    figure = plots.cohorts(rates, max_rows=1000)
    intact = rates.filter(pl.col("dimension").is_in(["hop", "operation"]), pl.col("broken") == 0)
    assert intact.height > 3
    assert len(figure.data[0].x) == rates["rate"].count() - intact.height
    assert f"{intact.height} places without a break left out" in figure.layout.title.text


def hop_rows(*rows):
    base = {
        "error_id": "e", "hop": 0, "trace_id": trace_id(1), "child_service": "bank",
        "parent_service": "web", "verdict": "swallowed", "boundary": "network",
        "child_type": "Refused", "confidence": 0.9,
    }  # fmt: skip
    return table([base | row for row in rows], schema.ERROR_HOPS)


def test_error_flow_leads_from_the_child_through_the_verdict_to_the_parent():
    sankey = plots.error_flow(hop_rows({}, {"error_id": "f"}, {"verdict": "kept"})).data[0]
    names = list(sankey.node.label)
    flows = {
        (names[a], names[b]): n
        for a, b, n in zip(sankey.link.source, sankey.link.target, sankey.link.value, strict=True)
    }
    assert flows[("bank", "swallowed")] == flows[("swallowed", "web")] == 2
    assert flows[("bank", "kept")] == 1


def test_error_flow_is_the_same_whatever_the_order_of_the_rows():
    hops = hop_rows(*({"parent_service": name} for name in "abcdefgh"))
    assert plots.error_flow(hops).to_json() == plots.error_flow(hops.reverse()).to_json()


def test_chain_ledger_has_one_step_per_hop_in_order():
    rows = hop_rows({"hop": 1, "verdict": "kept"}, {"hop": 0}, {"error_id": "other"})
    steps = plots.chain_ledger(rows, "e").data[0]
    assert [text.rsplit(" ", 1)[1] for text in steps.text] == ["swallowed", "kept"]
    assert "No such error" in said(plots.chain_ledger(rows, "nobody"))


def test_integrity_timeline_colours_all_services_by_tier():
    base = {"traces": 10, "broken": 1, "undetermined": 0, "coverage": 1.0}
    rows = table(
        [
            base | {"window_start": 0, "service_name": None, "sli": 0.9, "tier": "P1"},
            base | {"window_start": 300_000_000_000, "service_name": None, "sli": 1.0, "tier": "ok"},
            base | {"window_start": 0, "service_name": "web", "sli": 0.8, "tier": "P1"},
        ],
        schema.INTEGRITY,
    )  # fmt: skip
    figure = plots.integrity_timeline(rows)
    whole = named(figure, "all services")
    assert list(whole.y) == [0.9, 1.0]
    assert list(whole.marker.color) == [VERMILION, GREEN]
    assert list(named(figure, "web").y) == [0.8]


@pytest.fixture(scope="module")
def week():
    incident = tl.synthesize_incident(3, days=2.0)
    return incident, tl.detect_error_bursts(incident.red), tl.detect_latency_rises(incident.red)


def test_bursts_draws_every_bin_and_every_onset(week):
    incident, bursts, rises = week
    figure = plots.bursts(
        incident.red, trigger_service=incident.trigger, target_service=incident.target,
        bursts=bursts, rises=rises, max_points=10**6,
    )  # fmt: skip
    rows = incident.red.filter(
        pl.col("service_name") == incident.trigger, pl.col("span_name").is_null()
    ).sort("time")
    drawn = [None if y is None or y != y else y for y in named(figure, "5xx per bin").y]
    assert None in drawn
    assert drawn == rows["errors_5xx"].to_list()
    onsets = bursts.filter(
        pl.col("service_name") == incident.trigger, pl.col("span_name").is_null()
    )
    assert len(named(figure, "burst onset").x) == onsets.height > 0


def test_bursts_sums_neighbours_beyond_the_points_that_fit(week):
    incident, bursts, rises = week
    figure = plots.bursts(
        incident.red, trigger_service=incident.trigger, target_service=incident.target,
        bursts=bursts, rises=rises, max_points=100,
    )  # fmt: skip
    bars = named(figure, "5xx per bin")
    whole = incident.red.filter(
        pl.col("service_name") == incident.trigger, pl.col("span_name").is_null()
    )
    assert len(bars.y) <= 100
    assert sum(filter(None, bars.y)) == pytest.approx(whole["errors_5xx"].sum())


def test_bursts_latency_is_the_edge_of_the_bucket_that_holds_the_95th_percentile():
    base = {
        "service_name": "a", "bin_ns": 30_000_000_000, "requests": 100.0, "errors": 0.0,
        "errors_5xx": 1.0, "bucket_edges_ns": DEFAULT_EDGES,
    }  # fmt: skip
    red = table(
        [
            base | {"time": 0, "duration_counts": [96.0, 4.0, 0.0, 0.0]},
            base | {"time": 30_000_000_000, "duration_counts": [90.0, 4.0, 6.0, 0.0]},
        ],
        schema.RED,
    )
    figure = plots.bursts(
        red, trigger_service="a", target_service="a", bursts=schema.empty(schema.BURSTS),
        rises=schema.empty(schema.RISES),
    )  # fmt: skip
    assert list(named(figure, "p95 bucket, ms").y) == [5.0, 500.0]


def lead_rows(*rows):
    base = {
        "trigger_kind": "5xx", "trigger_service": "auth", "target_service": "pay",
        "verdict": "accepted", "accepted": True, "reason": "9 of 10", "lag_s": 600.0,
        "lag_low_s": 540.0, "lag_high_s": 660.0, "p_value": 0.001, "q_value": 0.002,
    }  # fmt: skip
    return table([base | row for row in rows], schema.LEAD_LAGS)


def test_lead_lag_draws_mean_band_and_lag_in_minutes():
    aligned = pl.DataFrame(
        {
            "offset_s": [-60.0, 0.0, 60.0], "slow_ratio": [0.1, 0.2, 0.3],
            "null_low": [0.0, 0.0, 0.0], "null_high": [0.2, 0.2, 0.2], "n_bursts": [4, 4, 4],
        }
    )  # fmt: skip
    figure = plots.lead_lag(aligned, lead_rows({}).row(0, named=True))
    mean = named(figure, "mean over 4 bursts")
    assert list(mean.x) == [-1.0, 0.0, 1.0]
    assert list(mean.y) == [0.1, 0.2, 0.3]
    assert {shape.x0 for shape in figure.layout.shapes} == {0, 10.0, 9.0}
    assert "lag 10.0 min" in said(figure)


def test_lag_matrix_shows_the_verdict_of_every_pair():
    rows = lead_rows({}, {"trigger_service": "pay", "target_service": "auth", "accepted": False,
                          "verdict": "rejected", "reason": "by chance"})  # fmt: skip
    heat = plots.lag_matrix(rows).data[0]
    at = {(a, b): (heat.z[i][j], heat.hovertext[i][j])
          for i, a in enumerate(heat.y) for j, b in enumerate(heat.x)}  # fmt: skip
    assert at[("auth", "pay")][0] == 1.0
    assert at[("pay", "auth")][0] == 0.0
    assert "by chance" in at[("pay", "auth")][1]
    assert at[("auth", "auth")] == (None, "not tried")


def test_rule_backtest_tells_rules_from_baselines():
    base = {"fold": 1, "precision": 0.8, "recall": 0.5, "n_fires": 5, "n_targets": 8}
    scores = table(
        [base | {"rule_id": "r1"}, base | {"rule_id": "r1/burn_rate", "precision": None}],
        schema.RULE_SCORES,
    )
    figure = plots.rule_backtest(scores)
    assert (list(named(figure, "rule").x), list(named(figure, "rule").y)) == ([0.5], [0.8])
    assert list(named(figure, "baseline").y) == [0]


def test_ingest_quality_stacks_what_became_of_the_spans():
    rows = table(
        [{"source": "a.jsonl", "spans_decoded": 10, "spans_kept": 7, "spans_duplicate": 2,
          "spans_rejected": 1, "messages_rejected": 0}],
        schema.INGEST,
    )  # fmt: skip
    figure = plots.ingest_quality(rows)
    assert [list(bar.x) for bar in figure.data] == [[7], [2], [1], [0]]
    assert named(figure, "rejected messages").marker.color == ORANGE


def test_foreign_text_loses_its_markup_and_its_length():
    shown = label(HOSTILE)
    assert not set(shown) & set("<>&$\x00\u202e")
    assert len(shown) < 200


def test_hostile_names_are_harmless_in_every_figure():
    capture = Capture(name=HOSTILE)
    capture.span(1, 1, service=HOSTILE, kind="CLIENT")
    capture.span(1, 2, 1, service=f"b{HOSTILE}", kind="SERVER", status_code="ERROR",
                 status_message=HOSTILE)  # fmt: skip
    traces = capture.traces()
    rows = {"from_service": HOSTILE, "to_service": HOSTILE, "evidence": [HOSTILE],
            "alternatives": [HOSTILE], "span_id": span_id(2)}  # fmt: skip
    hops = hop_rows({"child_service": HOSTILE, "parent_service": HOSTILE, "child_type": HOSTILE,
                     "child_message": HOSTILE, "parent_message": HOSTILE})  # fmt: skip
    ingest = table([{"source": HOSTILE[:30], "spans_decoded": 1, "spans_kept": 1}], schema.INGEST)
    leads = lead_rows({"trigger_service": HOSTILE, "target_service": HOSTILE, "reason": HOSTILE})
    for figure in (
        plots.waterfall(traces, trace_id(1), breaks=break_rows(rows)),
        plots.span_graph(traces, trace_id(1), breaks=break_rows(rows)),
        plots.service_map(tl.span_edges(traces), break_rows(rows)),
        plots.break_matrix(break_rows(rows)),
        plots.error_flow(hops),
        plots.chain_ledger(hops, "e"),
        plots.lag_matrix(leads),
        plots.ingest_quality(ingest),
    ):
        spec = figure.to_json()
        assert figure.data
        assert "script" in spec
        assert "<script" not in spec
        assert "\\u003cscript" not in spec
        assert "x" * 400 not in spec


def test_a_table_without_its_columns_is_refused_by_name():
    with pytest.raises(SchemaError, match="rate_low"):
        plots.cohorts(pl.DataFrame({"dimension": ["a"]}))


def test_every_figure_of_an_empty_capture_says_why_it_is_empty():
    empty = TraceSet(spans=schema.empty(schema.SPANS))
    breaks = tl.find_breaks(empty)
    hops = tl.find_error_hops(empty)
    for figure in (
        plots.service_map(tl.span_edges(empty), breaks),
        plots.break_matrix(breaks),
        plots.error_flow(hops),
        plots.integrity_timeline(tl.chain_integrity(empty)),
        plots.lag_matrix(schema.empty(schema.LEAD_LAGS)),
        plots.rule_backtest(schema.empty(schema.RULE_SCORES)),
        plots.ingest_quality(empty.ingest),
    ):
        assert isinstance(figure, go.Figure)
        assert not figure.data
        assert said(figure)


def test_the_explorer_lists_the_worst_first_and_says_how_many_there_are(shop):
    rows = break_rows({"severity": "info", "kind": "late_child"}, {"severity": "error"})
    shown = plots.explorer(shop, rows, error_hops=hop_rows({}, {"verdict": "kept"}))
    assert [row["severity"] for row in shown.rows] == ["error", "warning", "info"]
    assert shown.rows[1]["kind"] == "error swallowed"
    assert "3 cases" in repr(shown)


def test_a_frequent_kind_does_not_push_others_out_of_the_explorer(shop):
    many = [{"break_id": f"m{number:03}"} for number in range(50)]
    rows = break_rows(*many, {"break_id": "z", "kind": "wrong_parent", "confidence": 0.5})
    kinds = {row["kind"] for row in plots.explorer(shop, rows, max_rows=3).rows}
    assert kinds == {"orphan_span", "wrong_parent"}


def test_script_json_cannot_end_its_element():
    text = script_json('{"a":"</script><!--\u2028"}')
    assert "<" not in text
    assert ">" not in text
    assert "\u2028" not in text


def test_only_the_first_figure_of_a_kernel_carries_the_library(shop):
    renderer = OfflineRenderer()
    spec = plots.waterfall(shop, trace_id(1)).to_dict()
    first, second = (renderer.to_mimebundle(dict(spec))["text/html"] for _ in range(2))
    assert len(first) > 1_000_000 > 200_000 > len(second)
