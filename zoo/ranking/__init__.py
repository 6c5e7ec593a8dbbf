"""Golden rankings of patches."""
