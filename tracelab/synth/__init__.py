"""Seeded captures with planted truth.

`synthesize_traces` plays a random fleet; the injectors plant breaks and errors into any
capture, also a real one, and return what they planted.
"""

from tracelab.synth.failures import DEFAULT_FATES, inject_errors
from tracelab.synth.generate import synthesize_traces, write_synthetic
from tracelab.synth.incident import Incident, spans_of_incident, synthesize_incident
from tracelab.synth.inject import DEFAULT_RATES, inject_breaks

__all__ = [
    "DEFAULT_FATES",
    "DEFAULT_RATES",
    "Incident",
    "inject_breaks",
    "inject_errors",
    "spans_of_incident",
    "synthesize_incident",
    "synthesize_traces",
    "write_synthetic",
]
