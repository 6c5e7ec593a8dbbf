"""Questions about methods, and the paper's tables: what answers them, as tables."""
