"""Pictures of a run's traces: how rankings agree, and which patches of images are kept."""

from harness.report_pictures.agreement import table
from harness.report_pictures.gallery import galleries
from harness.report_pictures.matrix import matrix

__all__ = ["galleries", "matrix", "table"]
