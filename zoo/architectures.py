"""The networks that a predictor can be, from normalised tokens to one score per patch.

====================  ==========  ===========  ====================================
name                  free of N   any subset   what a patch's score depends on
====================  ==========  ===========  ====================================
linear                yes         yes          the token alone
mlp                   yes         yes          token, class token, mean token
transformer           yes         yes          all tokens, by attention
conv                  yes         no           token, class token, mean token, neighbours
mixer, pooledmixer    no          no           all tokens, by fixed weights per position
====================  ==========  ===========  ====================================

*Free of N* works on any grid (``dynamic_img_size``); *any subset* also on a sequence from which
patches are gone already.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from zoo import tracing
from zoo.reducer import expected


class Network(nn.Module):
    """What a predictor can be; ``any_subset`` tells if it scores grids with patches missing."""

    any_subset: ClassVar[bool] = True


class TokenLinear(Network):
    """Score each token by one linear function of it; the floor for all others.

    Permuting the patches permutes the importance.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim``; ``width`` and ``grid`` aren't needed."""
        super().__init__()
        self.score = nn.Linear(dim, 1, **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, n, D) to importance (B, n); the class token isn't used."""
        scores: Tensor = self.score(patches).squeeze(-1)
        return scores


class TokenMlp(Network):
    """Score each token from itself, the class token and the mean token.

    Permuting the patches permutes the importance.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim``; ``grid`` isn't needed."""
        super().__init__()
        self.token = nn.Linear(dim, width, **dd)
        self.context = nn.Linear(2 * dim, width, **dd)
        self.hidden = nn.Linear(width, width, **dd)
        self.score = nn.Linear(width, 1, **dd)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, n, D) and class token (B, 1, D), normalised, to importance (B, n)."""
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        scores: Tensor = self.score(self.act(self.hidden(x))).squeeze(-1)
        return scores


class TokenTransformer(Network):
    """Let patches and class token attend to one another in one encoder block, then score each.

    Permuting the patches permutes the importance: positions are in the tokens already.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build a block of ``width`` channels, in heads of 32 if that divides it, else in one."""
        super().__init__()
        heads = width // 32 if width % 32 == 0 else 1
        self.token = nn.Linear(dim, width, **dd)
        self.norm1 = nn.LayerNorm(width, **dd)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True, **dd)
        self.norm2 = nn.LayerNorm(width, **dd)
        self.mlp = Mlp(width, 4 * width, **dd)
        self.norm = nn.LayerNorm(width, **dd)
        self.score = nn.Linear(width, 1, **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, n, D) and class token (B, 1, D), normalised, to importance (B, n)."""
        x = self.token(torch.cat((cls, patches), dim=1))
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        scores: Tensor = self.score(self.norm(x[:, 1:])).squeeze(-1)
        return scores


class GridConv(Network):
    """Score each token from itself, the class token, the mean token and its neighbours."""

    any_subset = False

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim``; works on every grid."""
        super().__init__()
        self.token = nn.Linear(dim, width, **dd)
        self.context = nn.Linear(2 * dim, width, **dd)
        self.mix1 = nn.Conv2d(width, width, 5, padding=2, groups=width, **dd)
        self.hidden = nn.Linear(width, width, **dd)
        self.mix2 = nn.Conv2d(width, width, 5, padding=2, groups=width, **dd)
        self.score = nn.Linear(width, 1, **dd)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, N, D) in grid order and class token (B, 1, D) to importance (B, N).

        Raises:
            ValueError: patches of the grid are gone already.
        """
        patches = tracing.require_patches(
            patches,
            grid[0] * grid[1],
            f"a conv predictor needs the whole grid of {grid[0]} x {grid[1]} patches, got GOT; "
            "use arch='mlp', 'transformer' or 'linear' after a reduction",
        )
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        x = x + self._mix(self.mix1, x, grid)
        x = self.act(self.hidden(x))
        x = x + self._mix(self.mix2, x, grid)
        scores: Tensor = self.score(self.act(x)).squeeze(-1)
        return scores

    @staticmethod
    def _mix(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int]) -> Tensor:
        planes = x.transpose(1, 2).unflatten(2, grid)
        mixed: Tensor = conv(planes)
        return mixed.flatten(2).transpose(1, 2)


class Mixer(Network):
    """One MLP-Mixer block: channel MLP, then token MLP, each with a residual (section 3.3).

    With ``width`` the tower's own it is the paper's network; a narrower one projects the tokens
    first. An MLP is FC, LayerNorm, GELU, FC, four times as wide inside over channels and half the
    channels over tokens, as in MLP-Mixer: that gives the paper's 4.9M parameters. The score is the
    mean over channels. The token MLP is made for one N.
    """

    any_subset = False

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim`` on ``grid`` and no other."""
        super().__init__()
        self.patches = grid[0] * grid[1]
        self.token: nn.Module = nn.Identity() if width == dim else nn.Linear(dim, width, **dd)
        self.channel_mlp = _mlp(width, 4 * width, **dd)
        self.token_mlp = _mlp(self.patches, max(1, width // 2), **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, N, D) to importance (B, N); the class token isn't used.

        Raises:
            ValueError: N differs from the grid that the network was made for.
        """
        patches = tracing.require_patches(
            patches,
            self.patches,
            f"this mixer was made for {self.patches} patches, got GOT; use a predictor with "
            "arch='conv', 'mlp', 'transformer' or 'linear', which work on every grid",
        )
        x: Tensor = self.token(patches)
        x = x + self.channel_mlp(x)
        x = x + self.token_mlp(x.transpose(1, 2)).transpose(1, 2)
        return self._score(x)

    def _score(self, x: Tensor) -> Tensor:
        return x.mean(dim=-1)


class PooledMixer(Mixer):
    """The form of the authors' released script: channels averaged to ``width``, linear score."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim`` on ``grid`` and no other."""
        super().__init__(width, width, grid, **dd)
        self.token = _AverageChannels(width)
        self.score = nn.Linear(width, 1, **dd)

    def _score(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(x).squeeze(-1)
        return scores


class _AverageChannels(nn.Module):
    """Average neighbouring channels, (B, N, D) to (B, N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(x, self.width)


def _mlp(width: int, hidden: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden, **dd),
        nn.LayerNorm(hidden, **dd),
        nn.GELU(),
        nn.Linear(hidden, width, **dd),
    )


ARCHITECTURES: dict[str, type[Network]] = {
    "conv": GridConv,
    "linear": TokenLinear,
    "mixer": Mixer,
    "mlp": TokenMlp,
    "pooledmixer": PooledMixer,
    "transformer": TokenTransformer,
}


def architecture(arch: str) -> type[Network]:
    """Return the network called ``arch``.

    Raises:
        ValueError: there is none.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch={arch!r}: {expected(arch, ARCHITECTURES)}")
    return ARCHITECTURES[arch]


def require_any_subset(arch: str, block: int) -> None:
    """Refuse an architecture that can't score before ``block``, where patches are gone already.

    Raises:
        ValueError: unknown architecture, or one that needs the whole grid.
    """
    if not architecture(arch).any_subset:
        able = ", ".join(name for name, network in ARCHITECTURES.items() if network.any_subset)
        raise ValueError(
            f"arch={arch!r} scores whole grids only, and with rescore=True patches are gone before "
            f"block {block}: expected one of {able}, or rescore=False"
        )
