"""Towers for inference alone, and files for other runtimes."""
