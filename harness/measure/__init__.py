"""Measuring: a plan in, records out."""
