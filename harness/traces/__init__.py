"""What rows of `compare` did to single images: rankings, kept patches, answers; on disk."""

from harness.traces.folder import TRACES, lacking, read_traces
from harness.traces.row import Facts, RowTraces
from harness.traces.thumbnails import Thumbnails, read_thumbnails
from harness.traces.tracer import Answered, Tracer

__all__ = [
    "TRACES", "Answered", "Facts", "RowTraces", "Thumbnails", "Tracer", "lacking",
    "read_thumbnails", "read_traces",
]  # fmt: skip
