"""Show how fast golden rankings are made, and what many of them would take."""

from rich.table import Table

from harness.golden.estimate import GPUS, PEAKS, SHARES, bytes_per_image, estimates, fastest
from harness.golden.speed import TIE, Speed
from harness.statistics import Interval
from harness.tables import NOT_MEASURED

ROUNDS_95 = 6  # from which on a median has a 95 % interval
UNITS = {"min": 60, "h": 3600, "days": 86400}


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
        f"within {TIE:g}. G: 1e9 multiply-adds of what each row runs; matmuls: its matrix products "
        "alone, in its precision, in the same rounds."
    )
    table = Table(title=title, caption=caption, caption_justify="left")
    heads = ("way", "batch", "windows/s", "speed-up", "tau (least)", "same")
    for head in (*heads, "G per image", "G/s", "matmuls G/s", "share of matmuls"):
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
            f"{way.multiply_adds / 1e9:.1f}",
            f"{way.multiply_adds_per_s / 1e9:.1f}",
            f"{way.matmul_per_s / 1e9:.1f}",
            _interval(Interval(*(100 * value for value in way.share)), ".0f") + " %",
        )
    return table


def estimate_table(speed: Speed, images: int) -> Table:
    """Lay out what ``images`` images would take."""
    found = estimates(speed, images)
    rates = {one.precision: fastest(speed, one.precision) for one in found}
    measured = ", ".join(
        f"{way.multiply_adds_per_s / 1e9:.1f} G/s in {way.precision}"
        for way in rates.values()
        if way is not None
    )
    each = bytes_per_image(speed.geometry.patches)
    high, low = (100 * share for share in SHARES)
    peaks = "; ".join(
        f"{name} " + ", ".join(f"{peak[kind] / 1e12:g} in {kind}" for kind in rates)
        for name, peak in PEAKS.items()
    )
    caption = (
        f"This machine: {speed.device}, threads: {speed.threads}, {measured}, measured. The other "
        f"columns are not measured: {high:.0f} to {low:.0f} % of published peaks in TFLOPS "
        f"({peaks}). A store takes {each:.0f} bytes per image, {images * each / 1e9:.2f} GB in all."
    )
    title = f"{images:,} images, {speed.model}, before block {speed.block}"
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("way")
    gpus = [f"{count} {name}" for name in PEAKS for count in GPUS]
    for head in ("passes", "in", "G per image", "this machine", *gpus):
        table.add_column(head, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            one.point.label,
            f"{one.passes:.1f}",
            one.precision,
            f"{one.multiply_adds / 1e9:.1f}",
            NOT_MEASURED if one.here_s is None else duration(one.here_s),
            *(duration(fast, slow) for fast, slow in one.gpu_s.values()),
        )
    return table


def duration(*seconds: float) -> str:
    """Write times, the longest last, in the unit that gives it the shortest number from 1."""
    fitting = [name for name, size in UNITS.items() if seconds[-1] >= size]
    unit = fitting[-1] if fitting else next(iter(UNITS))
    figures = (value / UNITS[unit] for value in seconds)
    written = (f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in figures)
    return "–".join(written) + f" {unit}"


def _interval(value: Interval, form: str) -> str:
    estimate, low, high = (format(number, form) for number in value)
    return f"{estimate} [{low}, {high}]".replace("[", "\\[")
