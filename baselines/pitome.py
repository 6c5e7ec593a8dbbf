"""PiToMe: protect what is unique, merge what has many alike (arXiv 2405.16148, section 3).

The paper's full text could not be had where this was written: f_m, the margin and the constants are from memory, the
rest from abstracts and notes, so a poor result may be ours and not the method's.

Each token has an energy, the mean over all tokens of f_m(cosine of keys), where f_m(x) = x from the margin m on and
alpha * (exp(x - m) - 1) below. Of a block that merges k tokens away the 2 k of highest
energy may merge: in order of energy they alternate into two sets, and each token of one goes into its
nearest in the other. The margin falls with depth, 0.9 - 0.9 * l / L. The same share goes in every block
(``schedule="geometric"``), with ToMe's size-weighted means and proportional attention. Layers are counted from 0 here.
Notes of others say that it goes by energy in the second half of the blocks only, which ``energy_from`` can ask for.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.merger import Merger, MergerConfig, bipartite
from zoo.core.reducer import HostSpec, limit, register_method
from zoo.core.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class PiToMeConfig(MergerConfig):
    """Settings of PiToMe.

    Attributes:
        margin: m of the first block, which falls linearly to 0 behind the last; in (-1, 1].
        alpha: factor of f_m below the margin, above 0.
        energy_from: first block that goes by energy; those before it merge as ToMe does.
    """

    margin: float = limit(0.9, "(-1, 1]")
    alpha: float = limit(1.0, "(0, 1000]")
    energy_from: int = limit(0, "[0, inf)")


@register_method("pitome")
class PiToMe(Merger):
    """Merge among the tokens of highest energy, those that have many alike."""

    Config = PiToMeConfig
    config: PiToMeConfig
    by_default = False

    def __init__(self, config: PiToMeConfig, host: HostSpec) -> None:
        """Remember the depth, by which the margin falls."""
        super().__init__(config, host)
        self.depth = host.depth

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        """Merge ``r`` of the 2 r tokens of highest energy into the others of these."""
        count, order = tokens.patch_count, None
        if index >= self.config.energy_from:
            energies = energy(metric, self.config.margin * (1 - index / self.depth), self.config.alpha)
            order = energies.argsort(dim=1, descending=True, stable=True)[:, : 2 * r]
        gone, into, similarity, stay = bipartite(metric, count if order is None else 2 * r, r, order)
        return tokens.merge(index, gone, into, -similarity, count - r, stay=stay if order is None else None)


def energy(metric: Tensor, margin: float, alpha: float) -> Tensor:
    """Return each token's energy (B, n) float32 from ``metric`` (B, n, d): high where many are alike."""
    metric = F.normalize(metric.float(), dim=-1)
    cosine = (metric @ metric.transpose(1, 2)).float()
    return torch.where(cosine >= margin, cosine, alpha * ((cosine - margin).exp() - 1)).mean(dim=-1)
