"""Dropped patches are told from kept ones, whatever the image."""

import numpy as np
import pytest

from harness.golden.panels import HATCH, hatch, kept_panel, merged_panel

GRID = (4, 6)
CELLS = 24


def luminance(grey: float) -> float:
    """Return that of an sRGB grey in [0, 1], as WCAG defines it."""
    return grey / 12.92 if grey <= 0.04045 else ((grey + 0.055) / 1.055) ** 2.4


@pytest.mark.parametrize("ground", [1.0, 0.0])
def test_hatching_is_told_from_white_and_from_black_images(ground: float):
    for grey in HATCH:
        lights = sorted((luminance(grey) + 0.05, luminance(ground) + 0.05))
        assert lights[1] / lights[0] >= 3


@pytest.mark.parametrize("ground", [0.0, 0.25, 0.38, 0.47, 0.56, 0.75, 1.0])
@pytest.mark.parametrize("size", [(24, 36), (80, 120)])
def test_a_dropped_patch_looks_like_no_kept_one_on_any_plain_image(
    ground: float, size: tuple[int, int]
):
    view, kept = np.full((40, 60, 3), ground), np.arange(CELLS) % 2 == 0
    own = np.where(kept, np.arange(CELLS), -1)
    side = size[0] // 4
    for panel in (kept_panel(view, kept, GRID, size), merged_panel(view, own, GRID, size)):
        cells = panel.reshape(4, side, 6, side, 3).transpose(0, 2, 1, 3, 4).reshape(CELLS, -1)
        inner = cells.reshape(CELLS, side, side, 3)[:, 1:-1, 1:-1]
        assert np.abs(inner[kept] - ground).max() < 0.005
        off = np.abs(inner[~kept] - ground).max(axis=3)
        assert ((off > 0.08).mean(axis=(1, 2)) > 0.35).all()


@pytest.mark.parametrize("side", [3, 6, 11, 40])
def test_stripes_are_wide_enough_and_several_to_a_patch(side: int):
    row = hatch((4, 6), (4 * side, 6 * side))[0, :, 0]
    changes = np.flatnonzero(np.diff(row))
    assert np.diff(changes).min() >= 2
    assert len(changes) >= 6 * side / max(2, side / 4) - 2
