"""Measure pruned CLIP vision transformers: accuracy, cost, latency, agreement of rankings."""
