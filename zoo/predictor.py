"""Small networks that predict importance from the tokens at the reduction point."""

from typing import Any

from torch import Tensor, nn

from zoo.architectures import architecture


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
        network = architecture(arch)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.net = network(dim, width, grid, device=device, dtype=dtype)

    def forward(self, x: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """Map tokens x (B, prefix + n, D), class token first, to importance (B, n) float32."""
        x = self.norm(x)
        scores: Tensor = self.net(x[:, prefix:], x[:, :1], grid)
        return scores.float()
