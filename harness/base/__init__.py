"""Files, tables, terminal and workers: what all other rooms stand on."""
