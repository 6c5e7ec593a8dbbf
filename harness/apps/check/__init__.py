"""Measure a reduced benchmark again and say what is no longer as expected."""
