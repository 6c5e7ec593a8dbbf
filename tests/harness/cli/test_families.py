"""Every family of towers by the commands that take a model: a result, or a refusal of one sentence."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_towers import OPEN_CLIP, TIMM, check_commands, save

# One of each class of towers.
FEW = ("siglip b16", "dinov3 s", "beit", "naflex siglip 2", "open_clip", "coca")
POOLS = ("coca", "coca parallel", "cascade")  # that timm has no counterpart of


def save_blank(_: object, file: Any, *, format: str, pil_kwargs: dict[str, Any] | None = None, **__: Any) -> None:
    """Stand in for matplotlib's drawing, which takes most of the time."""
    if format == "svg":
        file.write(b"<svg></svg>")
    else:
        Image.new("RGB", (2, 2)).save(file, "jpeg" if format == "jpg" else "png", **(pil_kwargs or {}))


@pytest.mark.parametrize("kind", [*TIMM, *OPEN_CLIP])
def test_every_command_on_every_family(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Words need a text tower, and learned tokens a tower of timm's; all else is done by each family."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)
    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda _: None)
    monkeypatch.setattr("harness.measure.latency.WARMUP_S", 0)
    refusals = check_commands(save(kind, tmp_path / "tower"), tmp_path, capsys, slow=kind in FEW)
    refused = "has no text tower" if kind in TIMM else "takes no learned tokens" if kind in POOLS else ""
    assert set(refusals) == ({"eval"} if refused else set()), refusals
    assert refused in refusals.get("eval", "")
