"""Cheaper than removing every window: what ``GoldenConfig.approximate`` names, and what it costs.

docs/approximations.md has what each is worth.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from zoo.adopt import reduce
from zoo.effort import Effort
from zoo.follow import follow, follow_effort
from zoo.jacobian import jacobian, jacobian_effort
from zoo.reducer import expected
from zoo.suffix import Suffix
from zoo.tokens import Tokens
from zoo.vit import ReducedViT

Run = Callable[[Suffix, Tokens, Tensor, int], tuple[Tensor, Tensor]]


class Kind(NamedTuple):
    """A way to be cheaper, with one number that says how much.

    Attributes:
        number: what the number is.
        low: least number.
        run: from suffix, tokens at the block, windows and the number to unit features of whole
            images (B, D) and of those without each window (B, W, D); None where windows are removed
            for real, from a tower that ``shortened`` cut.
    """

    number: str
    low: int
    run: Run | None


SHALLOW = "shallow"
KINDS = {
    "follow": Kind("patch tokens per window that feel its removal", 0, follow),
    "jacobian": Kind("directions of features, each a backward pass", 1, jacobian),
    SHALLOW: Kind("the last block that is run, 0-based", 0, None),
}


def parse(spec: str) -> tuple[str, int]:
    """Split a spec such as ``follow:4`` into its kind and number.

    Raises:
        ValueError: no such kind, or no number in its range.
    """
    kind, _, number = spec.partition(":")
    if kind not in KINDS:
        known = ", ".join(f"{name}:N" for name in KINDS)
        raise ValueError(f"approximate={spec!r}: {expected(kind, KINDS)}, as in {known}")
    low = KINDS[kind].low
    if not re.fullmatch(r"[0-9]+", number) or int(number) < low:
        raise ValueError(
            f"approximate={spec!r}: expected {kind}:N with an integer N from {low} "
            f"({KINDS[kind].number})"
        )
    return kind, int(number)


def fitting(spec: str, effort: Effort, block: int, window: int, windows: int) -> tuple[int, int]:
    """Return the least and the greatest number that a spec of this kind can have on a tower.

    Args:
        spec: such as ``follow:4``.
        effort: of the tower from the reduction point on.
        block: reduction point.
        window: side of a window in patches.
        windows: number of windows.
    """
    kind, _ = parse(spec)
    if kind == "follow":
        return 0, effort.patches - window**2
    if kind == "jacobian":
        return 1, windows
    return block, block + effort.blocks - 1


def check(spec: str, model: ReducedViT, block: int, window: int, windows: int) -> None:
    """Refuse what a tower can't do; arguments as for ``fitting``.

    Raises:
        ValueError: the number is out of range, or features aren't made from the class token alone.
    """
    kind, number = parse(spec)
    low, high = fitting(spec, Effort.of(model, block), block, window, windows)
    if not low <= number <= high:
        raise ValueError(
            f"approximate={spec!r}: expected a number from {low} to {high} here "
            f"({KINDS[kind].number})"
        )
    if KINDS[kind].run is not None and model.global_pool != "token":
        raise ValueError(
            f"approximate={spec!r} needs features that come from the class token; this tower has "
            f"global_pool={model.global_pool!r}"
        )


def shortened(model: ReducedViT, spec: str | None) -> ReducedViT:
    """Return the tower whose features are compared: cut after a block for ``shallow``."""
    if spec is None or parse(spec)[0] != SHALLOW:
        return model
    blocks: Any = model.blocks
    short = reduce(model, method=None)
    short.blocks = blocks[: parse(spec)[1] + 1]
    return short


def quick_features(
    spec: str | None, suffix: Suffix, start: Tokens, cells: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Compute features without each window where a cheaper way than removal is asked for.

    Args:
        spec: such as ``follow:4``, or None.
        suffix: the tower from the reduction point on.
        start: the tokens of B images that enter it.
        cells: (W, r * r) windows.

    Returns:
        (B, D) unit features of whole images and (B, W, D) of those without each window, or None.
    """
    if spec is None:
        return None
    kind, number = parse(spec)
    run = KINDS[kind].run
    return None if run is None else run(suffix, start, cells, number)


def approximate_passes(spec: str | None, effort: Effort, block: int, windows: int) -> float:
    """Return what the windows of an image cost, 1 being a pass of a whole image from the block on.

    As in ``GoldenEngine.passes`` a removed window counts as 1, and the whole image's own pass is
    left out.

    Args:
        spec: such as ``follow:4``, or None for removal.
        effort: of the whole tower from the reduction point on.
        block: reduction point.
        windows: number of windows.
    """
    if spec is None:
        return windows
    kind, number = parse(spec)
    if kind == "follow":
        return follow_effort(effort, number, windows) / effort.whole
    if kind == "jacobian":
        return jacobian_effort(effort, number, windows) / effort.whole
    return windows * replace(effort, blocks=number - block + 1).whole / effort.whole
