"""Find the keep rate at which a model costs what is wanted."""

from bisect import bisect_left
from collections.abc import Callable

from numpy.polynomial import Polynomial

from harness.cost import gflops
from zoo.vit import ReducedViT


class KeepSolver:
    """Count one kind of model at several keep rates, each once.

    Args:
        dense: the tower.
        build: makes the model for a keep rate; raises ValueError for one that it can't do.
    """

    def __init__(self, dense: ReducedViT, build: Callable[[float], ReducedViT]) -> None:
        """Count nothing yet."""
        self.build = build
        self.patches = int(dense.patch_embed.num_patches)
        self._size = dense.patch_embed.img_size
        self._known: dict[float, float] = {}

    def gflops(self, keep: float) -> float:
        """Return fvcore's count of the model itself, 1e9 multiply-adds per image."""
        if keep not in self._known:
            self._known[keep] = gflops(self.build(keep), self._size).gflops
        return self._known[keep]

    def nearest(self, goal: float) -> float:
        """Return the keep rate whose cost is nearest to ``goal`` GFLOPs.

        The cost rises with the number of patch tokens at the end, very nearly as a square: three
        counts and a parabola say about where, and from there single steps lead to the two
        neighbours of the goal.
        """
        last = self.patches - 1
        self.build(1.0)  # a method that can't do even this says why
        least = 1 + bisect_left(range(1, last), True, key=self._able)

        def cost(count: int) -> float:
            return self.gflops(count / self.patches)

        seen = sorted({least, (least + last) // 2, last})
        parabola = Polynomial.fit(seen, [cost(count) for count in seen], len(seen) - 1)
        here = min(range(least, last + 1), key=lambda count: abs(float(parabola(count)) - goal))
        low = cost(here) < goal
        step = 1 if low else -1
        while least <= here + step <= last and (cost(here + step) < goal) == low:
            here += step
        beside = min(max(here + step, least), last)
        # Apart from the rest, as keeping all spares the method's own work too.
        counts = (here, beside, self.patches)
        return min(counts, key=lambda count: abs(cost(count) - goal)) / self.patches

    def _able(self, count: int) -> bool:
        """Tell whether the model can end with so few; ToMe, say, halves at most."""
        try:
            self.build(count / self.patches)
        except ValueError:
            return False
        return True
