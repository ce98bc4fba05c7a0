"""Seeded captures with planted truth.

`synthesize_traces` plays a random fleet; the injectors plant breaks and errors into any
capture, also a real one, and return what they planted. `synthesize_incident` makes the series
that early warnings are learnt from.
"""

from importlib import import_module
from typing import Any

from tracelab.synth.failures import DEFAULT_FATES, inject_errors
from tracelab.synth.generate import synthesize_traces, write_synthetic
from tracelab.synth.habits import HABITS
from tracelab.synth.inject import DEFAULT_RATES, inject_breaks

_LATER = ("Incident", "synthesize_incident")  # its scipy takes half a second to import

__all__ = [
    "DEFAULT_FATES",
    "DEFAULT_RATES",
    "HABITS",
    "Incident",
    "inject_breaks",
    "inject_errors",
    "synthesize_incident",
    "synthesize_traces",
    "write_synthetic",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module("tracelab.synth.incident"), name)
    raise AttributeError(f"module 'tracelab.synth' has no attribute {name!r}")
