"""Embeddings of pictures and texts: made, kept as Parquet and searched."""
