"""Real instrumented programs behind a real Collector, with planted and logged truth."""
