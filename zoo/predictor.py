"""Small networks that predict importance from the patch tokens at the reduction point."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.reducer import expected


class TokenMlp(nn.Module):
    """Score each token from itself, the class token and the mean token; free of N.

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
        """Map patches (B, N, D) and class token (B, 1, D), normalised, to importance (B, N)."""
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        scores: Tensor = self.score(self.act(self.hidden(x))).squeeze(-1)
        return scores


class GridConv(nn.Module):
    """Score each token from itself, the class token and its neighbours in the grid; free of N."""

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
        """Map patches (B, N, D) in grid order and class token (B, 1, D) to importance (B, N)."""
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


class Mixer(nn.Module):
    """One narrow MLP-Mixer block: channel MLP, then token MLP, mean over channels (section 3.3).

    Its token MLP is made for one N.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        """Build for tokens of width ``dim`` on ``grid`` and no other."""
        super().__init__()
        self.patches = grid[0] * grid[1]
        self.token = nn.Linear(dim, width, **dd)
        self.channel_mlp = _residual(width, **dd)
        self.token_mlp = _residual(self.patches, **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map patches (B, N, D) to importance (B, N); the class token isn't used.

        Raises:
            ValueError: N differs from the grid that the network was made for.
        """
        if patches.shape[1] != self.patches:
            raise ValueError(
                f"this mixer was made for {self.patches} patches, got {patches.shape[1]}; "
                "use a predictor with arch='mlp' or 'conv', which work on every grid"
            )
        x: Tensor = self.token(patches)
        x = x + self.channel_mlp(x)
        x = x.transpose(1, 2)
        x = x + self.token_mlp(x)
        return x.mean(dim=1)


def _residual(width: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width, **dd), nn.LayerNorm(width, **dd), nn.GELU())


ARCHITECTURES: dict[str, type[nn.Module]] = {"mlp": TokenMlp, "conv": GridConv, "mixer": Mixer}


class Predictor(nn.Module):
    """Normalise the tokens that enter the reduction point and score the patches."""

    def __init__(
        self, arch: str, dim: int, width: int, grid: tuple[int, int], device: Any, dtype: Any
    ) -> None:
        """Build architecture ``arch`` with random weights.

        Raises:
            ValueError: unknown architecture.
        """
        super().__init__()
        if arch not in ARCHITECTURES:
            raise ValueError(f"arch={arch!r}: {expected(arch, ARCHITECTURES)}")
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.net = ARCHITECTURES[arch](dim, width, grid, device=device, dtype=dtype)

    def forward(self, x: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """Map tokens x (B, prefix + N, D), class token first, to importance (B, N) float32."""
        x = self.norm(x)
        scores: Tensor = self.net(x[:, prefix:], x[:, :1], grid)
        return scores.float()
