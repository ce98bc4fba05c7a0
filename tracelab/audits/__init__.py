"""Checks that pass or fail, with their exemptions."""
