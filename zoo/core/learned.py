"""What is learned beside a tower: networks that predict importance, visual tokens, a head of text features."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn


class TokenLinear(nn.Module):
    """Score each token by one linear function of it; the floor for all others."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.score(patches).squeeze(-1)


class TokenMlp(nn.Module):
    """Score each token from itself, the class token and the mean token."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width)
        self.context = nn.Linear(2 * dim, width)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        return self.score(self.act(self.hidden(x))).squeeze(-1)


class TokenTransformer(nn.Module):
    """Let patches and class token attend to one another in one encoder block, then score each.

    Its heads are 32 channels wide if that divides ``width``, else it has one.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        heads = width // 32 if width % 32 == 0 else 1
        self.token = nn.Linear(dim, width)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.token(torch.cat((cls, patches), dim=1))
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.score(self.norm(x[:, 1:])).squeeze(-1)


class GridConv(nn.Module):
    """Score each token from itself, the class token, the mean token and its neighbours."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width)
        self.context = nn.Linear(2 * dim, width)
        self.mix1 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.hidden = nn.Linear(width, width)
        self.mix2 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.score = nn.Linear(width, 1)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches, all N of them in grid order."""
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        x = x + self._mix(self.mix1, x, grid)
        x = self.act(self.hidden(x))
        x = x + self._mix(self.mix2, x, grid)
        return self.score(self.act(x)).squeeze(-1)

    @staticmethod
    def _mix(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return conv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class Mixer(nn.Module):
    """One MLP-Mixer block: channel MLP, then token MLP, each with a residual (section 3.3), then the channels' mean.

    With ``width`` the tower's own it is the paper's network, a narrower one projects the tokens first. An MLP is FC,
    LayerNorm, GELU, FC, four times as wide inside over channels and half the channels over tokens, as in MLP-Mixer:
    that gives the paper's 4.9M parameters. The token MLP is made for the N of ``grid``.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patches = grid[0] * grid[1]
        self.token: nn.Module = nn.Identity() if width == dim else nn.Linear(dim, width)
        self.channel_mlp = _mlp(width, 4 * width)
        self.token_mlp = _mlp(self.patches, max(1, width // 2))

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches, all N of them in grid order."""
        if patches.shape[1] != self.patches:
            raise ValueError(
                f"this mixer was made for {self.patches} patches, got {patches.shape[1]}; use a predictor with "
                "arch='conv', 'mlp', 'transformer' or 'linear', which work on every grid"
            )
        x: Tensor = self.token(patches)
        x = x + self.channel_mlp(x)
        x = x + self.token_mlp(x.transpose(1, 2)).transpose(1, 2)
        return self._score(x)

    def _score(self, x: Tensor) -> Tensor:
        return x.mean(dim=-1)


class PooledMixer(Mixer):
    """The form of the authors' released script: channels averaged to ``width``, linear score."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__(width, width, grid)
        self.token = nn.AdaptiveAvgPool1d(width)
        self.score = nn.Linear(width, 1)

    def _score(self, x: Tensor) -> Tensor:
        return self.score(x).squeeze(-1)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
    return nn.Sequential(first, nn.LayerNorm(hidden), nn.GELU(), last)


# Each maps normalised patches (B, n, D), class token (B, 1, D) and grid to importance (B, n). It is built from the
# tokens' width ``dim``, its own ``width`` and the ``grid`` of the tower.
ARCHITECTURES: dict[str, type[nn.Module]] = {
    "conv": GridConv,
    "linear": TokenLinear,
    "mixer": Mixer,
    "mlp": TokenMlp,
    "pooledmixer": PooledMixer,
    "transformer": TokenTransformer,
}


class Predictor(nn.Module):
    """Normalise the tokens that enter the reduction point and score the patches."""

    def __init__(
        self,
        arch: str,
        dim: int,
        width: int,
        grid: tuple[int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        with torch.device(device or torch.get_default_device()):
            self.net = ARCHITECTURES[arch](dim, width, grid).to(dtype)

    def forward(self, x: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """Map tokens x (B, prefix + n, D), class token first, to importance (B, n) float32.

        Where a tower has no prefix token, the mean patch token stands in for the class token.
        """
        x = self.norm(x)
        cls = x[:, :1] if prefix else x.mean(dim=1, keepdim=True)
        return self.net(x[:, prefix:], cls, grid).float()


class PromptShape(NamedTuple):
    """What a tuned model is built from, as JSON values."""

    tokens: int  # learned visual tokens in the sequence, 0 where only the text was tuned
    classes: int  # of the head; 0: it stays the tower's
    features: int  # width of the joint space of images and text


def for_head(prompts: dict[str, int] | None, vit_args: dict[str, Any]) -> tuple[PromptShape | None, bool]:
    """Return a tuned model's shape, and whether the caller wants logits of its classes.

    In that case ``num_classes`` of ``vit_args`` becomes the width of the projection.
    """
    if prompts is None:
        return None, False
    shape = PromptShape(**prompts)
    classify = shape.classes > 0 and vit_args.get("num_classes") == shape.classes
    if classify:
        vit_args["num_classes"] = shape.features
    return shape, classify


class LearnedTokens(nn.Module):
    """Learned prefix tokens (count, D), never reduced, visible to every block; a call gives them."""

    count: int


class VisualPrompts(LearnedTokens):
    """Learned tokens as they are, zeros at first."""

    def __init__(self, count: int, dim: int, *, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.count = count
        self.tokens = nn.Parameter(torch.zeros(count, dim, device=device, dtype=dtype))

    def forward(self) -> Tensor:
        """Return the tokens, (count, D)."""
        return self.tokens


class CosineHead(nn.Module):
    """Classify as CLIP does: by the scaled cosine of image and text features."""

    def __init__(self, projection: nn.Module, classes: nn.Linear) -> None:
        super().__init__()
        self.projection = projection  # from pooled tokens to the joint space, the dense tower's head
        self.classes = classes  # its weights (classes, D) are unit text features times the logit scale

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled tokens (B, D) to logits (B, classes)."""
        return self.classes(F.normalize(self.projection(x), dim=-1))
