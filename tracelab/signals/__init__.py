"""Series of requests, errors and latency, and what precedes what."""
