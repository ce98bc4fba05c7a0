"""Seeded captures with planted truth."""
