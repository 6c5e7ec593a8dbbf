"""A picture with its words, for pages and folders."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of a report.

    Attributes:
        name: of its files, without suffix, such as ``accuracy_gflops``.
        title: heading.
        about: what it shows and how to read it, one paragraph.
        alt: for those who can't see it: what it shows, in one or two sentences.
        svg: the drawing; the page puts it in as an element, the report's folder as a file.
        png: the same as a bitmap.
    """

    name: str
    title: str
    about: str
    alt: str
    svg: bytes
    png: bytes
