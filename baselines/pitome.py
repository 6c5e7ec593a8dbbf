"""PiToMe: protect what is unique, merge what has many alike (arXiv 2405.16148), by what its public code computes.

Each token has an energy, the mean over all patch tokens of ELU(cosine - margin), which is high where many are alike.
Tokens alternate into two sets in order of falling energy, and each of the first set looks for its nearest in the
second. Early blocks match all tokens and merge the nearest pairs; later ones match the 2 r of highest energy and merge
them all.

The defaults are its set-up for DeiT: keys, the later way from the middle of the tower on, a margin of 0.75. That for
LAVIS's CLIP is ``metric="residual", energy_from=0, margin=0.95``. A third one, which merges behind the whole block,
isn't here. Its code gives sizes to means but never to attention; with ``proportional=True`` attention goes by size, as
in ToMe. The same share goes in every block. Blocks are counted from 0.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from zoo.core.merger import Merger, MergerConfig, bipartite
from zoo.core.reducer import limit, register_method
from zoo.core.tokens import Tokens

METRICS = ("keys", "residual")


@dataclass(frozen=True, kw_only=True)
class PiToMeConfig(MergerConfig):
    """Settings of PiToMe.

    Attributes:
        margin: that of the first block, which falls linearly to 0 behind the last; in (-1, 1].
        energy_from: first block that merges among the tokens of highest energy alone; None for the middle of the tower.
        metric: what is compared, keys averaged over heads or the residual stream behind the attention.
    """

    proportional: bool = False
    margin: float = limit(0.75, "(-1, 1]")
    energy_from: int | None = limit(None, "[0, inf)")
    metric: str = limit("keys", METRICS)


@register_method("pitome")
class PiToMe(Merger):
    """Merge among the tokens of highest energy, those that have many alike."""

    Config = PiToMeConfig
    config: PiToMeConfig
    by_default = False

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        """Merge ``r`` tokens into their nearest, among all or among the 2 r of highest energy."""
        if self.config.metric == "residual":
            metric = tokens.patches
        begin = (self.depth + 1) // 2 if self.config.energy_from is None else self.config.energy_from
        count = 2 * r if index >= begin else tokens.patch_count
        energies = energy(metric, self.config.margin * (1 - index / self.depth))
        order = energies.argsort(dim=1, descending=True, stable=True)[:, :count]
        gone, into, similarity, _ = bipartite(metric, r, order)
        return tokens.merge(index, gone, into, -similarity)


def energy(metric: Tensor, margin: float) -> Tensor:
    """Return each token's energy (B, n) float32 from ``metric`` (B, n, d): high where many are alike."""
    metric = F.normalize(metric.float(), dim=-1)
    return F.elu((metric @ metric.transpose(1, 2)).float() - margin).mean(dim=-1)
