"""Captures that begin and stop at other times than others in the same folder."""

import numpy as np
import polars as pl
import pytest

from tests.building import EPOCH_NS, Capture
from tracelab.structure import find_breaks
from tracelab.structure.skeleton import Skeleton

LOCAL = {"parent_is_remote": False}
REMOTE = {"parent_is_remote": True}
S = 1_000


def shop(
    capture: Capture,
    *,
    begin: float = 0,
    seconds: int = 60,
    whole: bool = False,
    exits: float | None = None,
    base: int = 0,
) -> Capture:
    """Requests to three web servers that call stock and pay, until the capture is cut off.

    The last batches of the web servers are not in it, unless it is whole. Pay exits after some
    seconds if they are given.
    """
    rng = np.random.default_rng(base + 7)
    for number in range(20 * seconds):
        at = begin + 50.0 * number + rng.uniform(0, 10)
        trace, replica = base + number + 1, number % 3
        told = {"service": "web", "service_instance_id": f"web-{base}-{replica}"}
        sent = whole or at < begin + S * seconds - 1_200 * (replica + 1)
        if sent:
            capture.span(
                trace, 1, start=at, duration=20, kind="SERVER", name="GET /", **told, **LOCAL
            )
        for span, callee in ((2, "stock"), (4, "pay")):
            start = at + 4 * span - 6
            if sent:
                capture.span(
                    trace, span, 1, start=start, duration=6, kind="CLIENT",
                    name=f"call {callee}", **told, **LOCAL,
                )  # fmt: skip
            if callee == "stock" or exits is None or at < begin + S * exits:
                capture.span(
                    trace, span + 1, span, start=start + 1, duration=4, kind="SERVER",
                    name=f"do {callee}", service=callee, service_instance_id=f"{callee}-{base}",
                    **REMOTE,
                )  # fmt: skip
    return capture


def intranet(capture: Capture, *, begin: float = 0, seconds: int = 600) -> Capture:
    """Two services that share no trace with the shop."""
    for number in range(2 * seconds):
        at, trace = begin + 500.0 * number, 900_000 + number
        capture.span(
            trace, 1, start=at, duration=20, kind="SERVER", name="GET /wiki", service="intranet",
            service_instance_id="i", **LOCAL,
        )  # fmt: skip
        capture.span(
            trace, 2, 1, start=at + 1, duration=9, kind="SERVER", name="page", service="wiki",
            service_instance_id="w", **REMOTE,
        )  # fmt: skip
    return capture


def horizons(capture: Capture) -> dict[str, tuple[float, float]]:
    """Edges per service instance, in seconds since the epoch of the builder."""
    skeleton = Skeleton.of(capture.traces())
    names = skeleton.processes["service_instance_id"].to_list()
    edges = skeleton.horizons
    return {
        name: ((low - EPOCH_NS) / 1e9, (high - EPOCH_NS) / 1e9)
        for name, low, high in zip(names, edges.low.tolist(), edges.high.tolist(), strict=True)
    }


def loud(capture: Capture) -> pl.DataFrame:
    found = find_breaks(capture.traces())
    return found.filter(pl.col("severity") != "info")


def test_what_the_end_cut_off_is_no_defect_though_another_capture_in_the_folder_goes_on():
    assert loud(shop(Capture())).height == 0
    assert loud(intranet(shop(Capture(), begin=100 * S))).height == 0


def test_services_that_share_traces_have_edges_of_their_own():
    edges = horizons(intranet(shop(Capture(), begin=100 * S)))
    assert edges["pay-0"] == pytest.approx((100, 160), abs=0.2)
    assert edges["pay-0"] == edges["web-0-1"]
    assert edges["w"] == edges["i"] == pytest.approx((0, 600), abs=1)


def test_one_process_that_falls_silent_before_those_it_shares_traces_with_has_not_met_an_edge():
    capture = intranet(shop(Capture(), begin=100 * S, exits=30))
    assert horizons(capture)["pay-0"][1] == pytest.approx(160, abs=0.2)


def test_a_lone_service_that_falls_silent_while_others_go_on_has_not_met_an_edge():
    capture = intranet(Capture())
    for number in range(2_000):
        capture.span(number + 1, 1, start=30.0 * number, name="tick", service="cron",
                     service_instance_id="c")  # fmt: skip
    assert horizons(capture)["c"][1] == pytest.approx(600, abs=1)


def test_services_with_rare_work_are_not_cut_off_between_it():
    capture = intranet(Capture())
    for run in range(6):
        shop(capture, begin=100 * S * run, seconds=5, whole=True, base=10_000 * run)
    assert {edge[1] for edge in horizons(capture).values()} == {max(
        edge[1] for edge in horizons(capture).values()
    )}  # fmt: skip


def test_two_captures_of_the_same_services_have_two_edges():
    capture = shop(shop(Capture()), begin=3_600 * S, base=50_000)
    edges = horizons(capture)
    assert edges["pay-0"] == pytest.approx((0, 60), abs=1.1)
    assert edges["pay-50000"] == pytest.approx((3_600, 3_660), abs=1.1)
    assert loud(capture).height == 0


def phones(capture: Capture, *, off: float) -> Capture:
    """Forty phones that call the shop now and then, their clocks off by up to a minute."""
    rng = np.random.default_rng(3)
    for phone in range(40):
        ahead = float(rng.uniform(-off, off)) * S
        for visit in range(4):
            at, trace = float(rng.uniform(0, 59)) * S, 700_000 + 10 * phone + visit
            capture.span(
                trace, 1, start=at + ahead, duration=120, kind="CLIENT", name="GET", service="app",
                service_instance_id=f"phone-{phone}", **LOCAL,
            )  # fmt: skip
            capture.span(
                trace, 2, 1, start=at + 40, duration=20, kind="SERVER", name="GET /app",
                service="web", service_instance_id=f"web-0-{phone % 3}", **REMOTE,
            )  # fmt: skip
    return capture


def test_phones_with_wrong_clocks_do_not_move_the_edge_of_the_services_that_they_call():
    edges = horizons(phones(shop(Capture()), off=60))
    for name in ("pay-0", "stock-0", "web-0-0"):
        assert edges[name] == pytest.approx((0, 60), abs=6)
    spread = [edge for name, edge in edges.items() if name.startswith("phone")]
    assert min(low for low, _ in spread) < -20
    assert max(high for _, high in spread) > 80


def test_services_that_fall_silent_together_before_the_others_stop_together_met_an_outage():
    capture = shop(Capture(), seconds=30, whole=True)
    rng = np.random.default_rng(5)
    for number in range(2_400):
        at = 50.0 * number + rng.uniform(0, 5)
        for part, service in enumerate(("front", "mail", "web" if at < 30 * S else "mail")):
            capture.span(
                300_000 + number, part + 1, part or None, start=at + part, duration=9 - 2 * part,
                kind="SERVER", name=f"{service} work", service=service,
                service_instance_id="web-0-0" if service == "web" else service,
            )  # fmt: skip
    edges = horizons(capture)
    assert {high for _, high in edges.values()} == {max(high for _, high in edges.values())}


def test_a_span_lost_in_a_short_capture_beside_a_long_one_is_still_a_break():
    capture = intranet(shop(Capture(), begin=100 * S))
    lost = [span for span in capture.spans if span["name"] == "call pay"][500]
    capture.spans.remove(lost)
    found = loud(capture)
    assert found["missing_span_id"].to_list() == [lost["span_id"]]


def test_what_a_process_lost_that_began_in_mid_capture_was_not_exported_before_it():
    rng = np.random.default_rng(9)
    capture = shop(Capture(), whole=True)
    for number in range(600):
        at, trace = 30 * S + 50.0 * number, 400_000 + number
        told = {"service": "batch", "service_instance_id": "batch"}
        later = 2_000 * float(rng.random() ** 4)
        if number not in (8, 11):
            capture.span(trace, 1, start=at, duration=20, name="run", **told, **LOCAL)
        capture.span(trace, 2, 1, start=at + 5 + later, duration=5, kind="CLIENT", name="order", **told,
                     **LOCAL)  # fmt: skip
        capture.span(trace, 3, 2, start=at + 6 + later, duration=3, kind="SERVER", name="do stock",
                     service="stock", service_instance_id="stock-0", **REMOTE)  # fmt: skip
    found = find_breaks(capture.traces())
    early = found.filter(pl.col("trace_id").is_in([f"{400_000 + n:032x}" for n in (8, 11)]))
    assert early["severity"].to_list() == ["warning", "warning"]


def test_processes_that_were_captured_twice_have_two_ends():
    capture = shop(shop(Capture()), begin=3_600 * S, base=50_000)
    for span in capture.spans:
        span["service_instance_id"] = span["service_instance_id"].replace("-50000", "-0")
    assert loud(capture).height == 0
    lost = [span for span in capture.spans if span["name"] == "call pay"][500]
    capture.spans.remove(lost)
    assert loud(capture)["missing_span_id"].to_list() == [lost["span_id"]]
