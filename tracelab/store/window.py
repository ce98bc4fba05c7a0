"""A span of time of a store, and the batches that can hold what belongs to it."""

from collections.abc import Mapping
from dataclasses import dataclass

from tracelab.store.log import Part, Place
from tracelab.store.parts import start_times
from tracelab.store.shelves import Shelf


@dataclass(frozen=True, slots=True)
class Window:
    """Traces that begin in a span of time.

    Parameters
    ----------
    start, end : int or None
        Nanoseconds since 1970; open if None.
    places : frozenset of tuple of int
        The batches to look at.
    """

    start: int | None
    end: int | None
    places: frozenset[Place]


def find_window(
    root: Shelf,
    batches: Mapping[Place, Mapping[str, Part]],
    *,
    start: int | None,
    end: int | None,
    margin: int,
) -> Window:
    """Choose the batches that hold spans of a span of time, by the statistics of their parts.

    Parameters
    ----------
    root : Shelf
        The store.
    batches : mapping
        Its batches, by their place.
    start, end : int or None
        Nanoseconds since 1970; open if None.
    margin : int
        Nanoseconds before and after in which the rest of such a trace may lie.

    Returns
    -------
    Window
        Batches without spans, or that do not tell their times, are among its places.

    Raises
    ------
    StoreError
        If a part is missing or damaged where this looks.
    """
    places = []
    for place, batch in batches.items():
        times = start_times(root, batch)
        if times is not None:
            first, last = times
            if (end is not None and first >= end + margin) or (
                start is not None and last < start - margin
            ):
                continue
        places.append(place)
    return Window(start, end, frozenset(places))
