"""Runtimes: each file here registers its own with zoo/deploy/runtime.py, and no list names them."""
