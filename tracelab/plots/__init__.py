"""Figures: tables in, plotly figures out."""
