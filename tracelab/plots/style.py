"""One visual language: colours by meaning, safe text, one layout."""

from typing import Any, Final

import plotly.graph_objects as go

from tracelab import html

# Okabe and Ito's palette: distinguishable with every common colour vision deficiency.
BLUE: Final = "#0072B2"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
ORANGE: Final = "#E69F00"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
YELLOW: Final = "#F0E442"
GREY: Final = "#8A8A8A"
INK: Final = "#222222"
PAPER: Final = "#FFFFFF"

SEVERITY_COLOR: Final = {"error": VERMILION, "warning": ORANGE, "info": SKY}
VERDICT_COLOR: Final = {
    "kept": BLUE,
    "wrapped": GREEN,
    "recovered": SKY,
    "flattened": ORANGE,
    "truncated": YELLOW,
    "replaced": PURPLE,
    "swallowed": VERMILION,
    "status_lost": "#A63603",
    "not_determinable": GREY,
}
SERVICE_COLORS: Final = (
    BLUE, GREEN, PURPLE, SKY, "#5E4FA2", "#66A61E", "#A6761D", "#1B9E77", "#7570B3", "#E7298A",
)  # fmt: skip
"""Services take these in order of name; warm colours are kept for what is wrong."""

_UNSAFE: Final = str.maketrans({"<": "‹", ">": "›", "&": "﹠", "$": "＄"})


def label(text: object, *, limit: int = 120) -> str:
    """Make foreign text harmless inside a figure.

    plotly renders a subset of HTML in every text, decodes entities twice, and hands dollar
    signs to MathJax where that is loaded, so escaping does not help: the four characters are
    replaced by look-alikes.

    Parameters
    ----------
    text : object
        Anything; None becomes an empty string.
    limit : int
        Longest result.

    Returns
    -------
    str
        One line without markup.
    """
    return html.plain(text, limit=limit).translate(_UNSAFE)


def service_colors(services: list[str | None]) -> dict[str | None, str]:
    """Give each service a colour, by order of name."""
    names = sorted({service for service in services if service is not None})
    colors: dict[str | None, str] = {
        name: SERVICE_COLORS[position % len(SERVICE_COLORS)] for position, name in enumerate(names)
    }
    return colors | {None: GREY}


def figure(*, title: str, height: int = 420, **layout: Any) -> go.Figure:
    """Return an empty figure in the common layout.

    The paper is white and the ink dark in every theme: a light card on a dark page is
    readable, transparent paper under unknown ink is not.
    """
    base: dict[str, Any] = {
        "title": {"text": title, "x": 0, "xanchor": "left", "xref": "paper"},
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {"align": "left", "font": {"family": "ui-monospace, monospace"}},
        "legend": {"orientation": "h", "y": -0.18, "x": 0},
        "xaxis": {"gridcolor": "#E5E5E5", "zeroline": False},
        "yaxis": {"gridcolor": "#E5E5E5", "zeroline": False},
    }
    shown = go.Figure(layout=base)
    shown.update_layout(**layout)
    return shown


def nothing_to_show(title: str, why: str) -> go.Figure:
    """Return a figure that says in words why it is empty."""
    shown = figure(title=title, height=160)
    shown.update_layout(xaxis_visible=False, yaxis_visible=False)
    shown.add_annotation(text=label(why), x=0, y=0.5, xref="paper", yref="paper", showarrow=False)
    return shown
