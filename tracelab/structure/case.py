"""What speaks for each cause of each missing span: weights, and the words that say why."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from tracelab.structure.skeleton import Bools, Floats, Ints

MIN_ODDS: Final = 0.5
"""Least odds of a span cut off by the capture's edge against one that got lost, from which an
orphan is not called a defect without better evidence."""


def both(*odds: Floats | float) -> Floats:
    """Return the odds that all of several things are so, each of which is doubtful by itself.

    Parameters
    ----------
    odds : ndarray of float64 or float
        Odds of each.

    Returns
    -------
    ndarray of float64
        Below the least of them.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    doubt = sum(1 / np.maximum(each, 1e-9) for each in odds)
    return 1 / np.asarray(doubt)


@dataclass(slots=True)
class Case:
    """Weights and words, gathered per missing span.

    Parameters
    ----------
    weights : dict of str to ndarray of float64
        By cause.
    words : dict of str to ndarray of int32
        By cause, which of `texts` says why; 0 where nothing does.
    cut_off : ndarray of float64
        Weight of the capture's edge if that is ragged.
    texts : list of str
        Evidence, the empty text first.
    """

    weights: dict[str, Floats]
    cut_off: Floats
    words: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=lambda: [""])

    def put(self, cause: str, where: Bools | Ints, weight: Floats | float, text: str) -> None:
        """Raise a weight, and give the text that says why."""
        rows = np.flatnonzero(where) if np.asarray(where).dtype == bool else np.asarray(where)
        new = np.broadcast_to(np.asarray(weight, dtype=np.float64), rows.shape)
        higher = new > self.weights[cause][rows]
        if not higher.any():
            return
        self.weights[cause][rows[higher]] = new[higher]
        self.texts.append(text)
        size = self.weights[cause].size
        words = self.words.setdefault(cause, np.zeros(size, np.int32))
        words[rows[higher]] = len(self.texts) - 1

    @property
    def at_edge(self) -> Bools:
        """What may have been cut off at the edge of the capture, however that lies."""
        edge: Bools = self.cut_off >= MIN_ODDS
        return edge

    def put_edge(self, where: Bools, ragged: Floats, weight: Floats, text: str) -> None:
        """Raise the weight of the capture's edge: where that is ragged, and as it is."""
        self.cut_off[where] = np.maximum(self.cut_off[where], ragged[where])
        self.put("capture_edge", where, weight[where], text)

    def strongest(self, causes: Iterable[str]) -> Floats:
        """Return the highest weight of some causes, entry by entry."""
        highest: Floats = np.max([self.weights[cause] for cause in causes], axis=0)
        return highest

    def copy_entries(self, to: Ints, source: Ints) -> None:
        """Give some entries the weights and words of others."""
        self.cut_off[to] = self.cut_off[source]
        for cause, weights in self.weights.items():
            weights[to] = weights[source]
            if cause in self.words:
                self.words[cause][to] = self.words[cause][source]
