"""Figures in notebooks: alive in JupyterLab, and still drawn in a page exported from one."""

from itertools import count
from typing import Any

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from tracelab.plots.script import plotly_script, script_json

RENDERER = "tracelab"


class OfflineRenderer(MimetypeRenderer):  # type: ignore[misc]
    """Give JupyterLab its own plotly form, and beside it HTML that needs no network.

    JupyterLab draws the first and ignores the second; a page made from the notebook has only
    the second. The library (1.3 MB) goes into the first figure of a kernel alone.
    """

    def __init__(self) -> None:
        self._numbers = count()

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the figure in both forms.

        Parameters
        ----------
        fig_dict : dict
            The figure as plotly gives it to renderers.

        Returns
        -------
        dict
            Form to content.

        Raises
        ------
        FileNotFoundError
            If the package was installed without its assets.
        """
        spec = pio.to_json(fig_dict, validate=False, remove_uids=False)
        number = next(self._numbers)
        text = script_json(spec)
        # Without a height of its own a figure takes that of the window.
        height = int(fig_dict.get("layout", {}).get("height") or 450)
        return {
            "application/vnd.plotly.v1+json": pio.renderers["plotly_mimetype"].to_mimebundle(
                fig_dict
            )["application/vnd.plotly.v1+json"],
            "text/html": (
                (plotly_script() if number == 0 else "")
                + f'<div id="tracelab-figure-{number}" style="height:{height}px"></div>'
                f"<script>(function(){{var spec={text};"
                f'window.Plotly.newPlot("tracelab-figure-{number}",spec.data,spec.layout,'
                "{responsive:true,displaylogo:false});})();</script>"
            ),
        }


def prefer_offline_figures() -> None:
    """Use `OfflineRenderer` in a kernel that would show figures in JupyterLab's form alone."""
    if RENDERER not in pio.renderers:
        pio.renderers[RENDERER] = OfflineRenderer()
    if pio.renderers.default == "plotly_mimetype":
        pio.renderers.default = RENDERER
