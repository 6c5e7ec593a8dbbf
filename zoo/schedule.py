"""How many patch tokens are left: at the end, and after each reduction point."""

SCHEDULES = ("geometric", "linear")


def final_count(patches: int, keep: float) -> int:
    """Return round(keep * N), at least 1: the patch tokens left at the end."""
    return max(1, round(keep * patches))


def spread(patches: int, keep: float, points: tuple[int, ...], schedule: str) -> dict[int, int]:
    """Share the way from N to ``final_count`` patch tokens over the reduction points."""
    last = final_count(patches, keep)
    stages = len(points)
    counts: dict[int, int] = {}
    for done, point in enumerate(points, start=1):
        if schedule == "linear":
            left = patches - round((patches - last) * done / stages)
        else:
            left = final_count(patches, keep ** (done / stages))
        counts[point] = last if done == stages else max(last, left)
    return counts
