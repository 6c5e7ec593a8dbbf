"""Drawings as elements of a page."""

import re
from html import escape

from harness.plots.style import INK


def inline(svg: bytes, name: str, alt: str) -> str:
    """Return a drawing as an element that is told as a picture.

    No prolog, document type or metadata; ink has the colour of the page's text; no id of it is
    another drawing's.

    Args:
        svg: as matplotlib writes it.
        name: of the drawing on its page.
        alt: what it shows.
    """
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    head, _, body = text.partition(">")
    head += f' role="img" aria-labelledby="{name}-alt"'
    told = f'<title id="{name}-alt">{escape(alt)}</title>'
    return f"{head}>{told}{body}".replace(INK, "currentColor").strip()
