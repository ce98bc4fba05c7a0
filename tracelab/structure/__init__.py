"""Where traces break, and why."""

from tracelab.structure.breaks import Reduced, find_breaks, reduce_bucket, resolve_breaks
from tracelab.structure.edges import span_edges

__all__ = ["Reduced", "find_breaks", "reduce_bucket", "resolve_breaks", "span_edges"]
