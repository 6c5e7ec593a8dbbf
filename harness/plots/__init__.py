"""Plots of records: what they show as data, and how that is drawn."""
