"""Seeded captures with planted truth.

`synthesize_traces` plays a random fleet; the injectors plant breaks and errors into any
capture, also a real one, and return what they planted.
"""

from tracelab.synth.generate import synthesize_traces
from tracelab.synth.inject import DEFAULT_RATES, inject_breaks

__all__ = ["DEFAULT_RATES", "inject_breaks", "synthesize_traces"]
