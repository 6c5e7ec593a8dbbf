"""ATC: merge by agglomerative clustering (arXiv 2409.11923), as its public code does it, but on the model's device.

Between attention and MLP patch tokens are clustered from the bottom up, anew at each stage: of all clusters the
nearest two become one until as many are left as scheduled. The distance of two tokens is one minus the cosine of their
keys, averaged over heads; sizes play no part in it. A cluster becomes the size-weighted mean of its tokens, and
attention goes by size. The code calls scikit-learn for each image; here all images of a batch are clustered in step.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.merger import Merger, MergerConfig
from zoo.core.reducer import Reducer, StagedConfig, limit, register_method
from zoo.core.tokens import Tokens, every_position, rows

LINKAGES = ("average", "complete", "single")


@dataclass(frozen=True, kw_only=True)
class ATCConfig(StagedConfig, MergerConfig):
    """Settings of ATC.

    Attributes:
        linkage: what the distance of two clusters is: the mean over pairs of their tokens, the largest or the smallest.
    """

    reduce_at: tuple[int, ...] | None = None
    linkage: str = limit("average", LINKAGES)


@register_method("atc")
class ATC(Merger):
    """Merge clusters of tokens that are alike, from the bottom up."""

    Config = ATCConfig
    config: ATCConfig
    by_default = False
    ordered = True

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many patch tokens leave each stage; clusters may be of any size."""
        return Reducer.counts(self, patches)

    def merge(self, index: int, tokens: Tokens, metric: Tensor, r: int) -> Tokens:
        metric = F.normalize(metric.float(), dim=-1)
        distance = 1 - (metric @ metric.transpose(1, 2)).float()
        gone, into, height = cluster(distance, r, self.config.linkage)
        return tokens.merge(index, gone, into, height)


def cluster(distance: Tensor, r: int, linkage: str) -> tuple[Tensor, Tensor, Tensor]:
    """Join the nearest two of n clusters, at first single tokens, ``r`` times.

    Distances are updated by the formulas of Lance and Williams. On ties the lower positions are joined first.

    Args:
        distance: (B, n, n) float32, symmetric.
        r: below n.
        linkage: of `LINKAGES`.

    Returns:
        (B, r) positions of tokens in the order in which they were joined to a cluster of lower position, (B, r) the
        first token of the cluster that each is in at the end, (B, r) distances at which they were joined.
    """
    with torch.no_grad():
        count = distance.shape[1]
        positions = torch.arange(count, device=distance.device)
        between = distance.masked_fill(positions == positions.unsqueeze(1), math.inf)
        first = every_position(distance, count)
        members = torch.ones_like(distance[:, 0])
        gone, heights = [], []
        for _ in range(r):
            height, pair = between.flatten(1).min(dim=1, keepdim=True)
            low, high = pair // count, pair % count  # the first of two equal ones lies above the diagonal
            left, right = rows(between, low), rows(between, high)
            if linkage == "average":
                ours, theirs = members.gather(1, low).unsqueeze(2), members.gather(1, high).unsqueeze(2)
                joined = (ours * left + theirs * right) / (ours + theirs)
            elif linkage == "complete":
                joined = torch.maximum(left, right)
            else:
                joined = torch.minimum(left, right).masked_fill((left == math.inf) | (right == math.inf), math.inf)
            is_low, is_high = positions == low, positions == high
            between = between.where(~is_low.unsqueeze(2), joined).where(~is_low.unsqueeze(1), joined.transpose(1, 2))
            between = between.masked_fill(is_high.unsqueeze(2) | is_high.unsqueeze(1), math.inf)
            members = members + is_low * members.gather(1, high)
            first = first.where(first != high, low)
            gone.append(high)
            heights.append(height)
        went = torch.cat(gone, dim=1)
        return went, first.gather(1, went), torch.cat(heights, dim=1)
