"""Show how fast golden rankings are made."""

from rich.table import Table

from harness.golden.speed import TIE, Speed
from harness.statistics import Interval
from harness.table import NOT_MEASURED

ROUNDS_95 = 6  # from which on a median has a 95 % interval


def speed_table(speed: Speed) -> Table:
    """Lay out all ways, the straightforward one first."""
    title = (
        f"{speed.model}, before block {speed.block}, {speed.windows} windows (side {speed.window}, "
        f"stride {speed.stride}), images of {speed.dataset}: {speed.images}"
    )
    rounds = len(speed.ways[0].samples_ms)
    certain = "95 % intervals" if rounds >= ROUNDS_95 else "their range"
    caption = (
        f"{speed.device}, threads: {speed.threads}. {rounds} rounds: medians \\[quartiles], "
        f"ratios with {certain}. same: share of rankings equal to the first row's up to scores "
        f"within {TIE:g}."
    )
    table = Table(title=title, caption=caption, caption_justify="left")
    heads = ("way", "batch", "windows/s", "speed-up", "tau (least)", "same")
    for head in heads:
        table.add_column(head, justify="left" if head == "way" else "right", no_wrap=True)
    for way in speed.ways:
        # Without weights all patches are as good as each other.
        agreement = [f"{way.tau:.3f} ({way.tau_least:.3f})", f"{100 * way.same:.0f} %"]
        if speed.random_weights:
            agreement = [NOT_MEASURED] * 2
        table.add_row(
            way.name,
            str(way.batch),
            _interval(way.windows_per_s, ".1f"),
            _interval(way.speed_up, ".2f"),
            *agreement,
        )
    return table


def _interval(value: Interval, form: str) -> str:
    estimate, low, high = (format(number, form) for number in value)
    return f"{estimate} [{low}, {high}]".replace("[", "\\[")
