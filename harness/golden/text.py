"""Text that fits into a given width, measured in the figure's font."""

from typing import Any


def width_of(text: str, size: float) -> float:
    """Return the width in pixels of a line in a font of ``size`` pixels, as Agg will draw it."""
    from matplotlib.backends.backend_agg import get_hinting_flag
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    font.set_size(size, 72)  # a point is a pixel
    flags: Any = get_hinting_flag()  # type: ignore[no-untyped-call]
    font.set_text(text, 0, flags=flags)
    return float(font.get_width_height()[0]) / 64  # FreeType counts in 64ths


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break a text at blanks into lines no wider than ``width``; a longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def short(name: str, size: float, width: float) -> str:
    """Cut the middle out of a name that is too wide; what tells files apart is at its ends."""
    shorter, kept = name, len(name)
    while kept > 2 and width_of(shorter, size) > width:
        kept -= 1
        shorter = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
    return shorter
