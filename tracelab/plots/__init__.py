"""Figures: tables in, plotly figures out. None computes a statistic, none shows itself."""

import sys

from tracelab.plots.breaks import break_matrix, cohorts
from tracelab.plots.errors import chain_ledger, error_flow, integrity_timeline
from tracelab.plots.explorer import Explorer, explorer
from tracelab.plots.maps import service_map, span_graph
from tracelab.plots.quality import ingest_quality
from tracelab.plots.warning import bursts, lag_matrix, lead_lag, rule_backtest
from tracelab.plots.waterfall import waterfall

__all__ = [
    "Explorer",
    "break_matrix",
    "bursts",
    "chain_ledger",
    "cohorts",
    "error_flow",
    "explorer",
    "ingest_quality",
    "integrity_timeline",
    "lag_matrix",
    "lead_lag",
    "rule_backtest",
    "service_map",
    "span_graph",
    "waterfall",
]

if "ipykernel" in sys.modules:
    # Elsewhere nothing shows figures by itself, and plotly's renderers take seconds to load.
    from tracelab.plots.notebook import prefer_offline_figures

    prefer_offline_figures()
