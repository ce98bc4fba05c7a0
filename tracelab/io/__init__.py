"""Readers and writers of export files."""
