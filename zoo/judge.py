"""The three golden scores of an image without some of its patches (arXiv 2409.14607, 3.2)."""

from dataclasses import dataclass

from torch import Tensor

SCORES = ("preservation", "label", "confidence")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Score what is left of some images; a high score says that what went was dispensable.

    Attributes:
        score: ``preservation`` (cosine with the whole image's features), ``label`` (posterior of
            the true class), ``confidence`` (highest posterior of any class).
        target: (B, D) unit features of the whole images.
        text: (classes, D) unit class features, for ``label`` and ``confidence``.
        scale: factor on cosines in the posterior.
        labels: (B,) int64 true classes, for ``label``.
    """

    score: str
    target: Tensor
    text: Tensor | None = None
    scale: float = 100.0
    labels: Tensor | None = None

    def __call__(self, features: Tensor, rows: Tensor) -> Tensor:
        """Score unit features (S, D) of what is left of images ``rows`` (S,); (S,) float32."""
        if self.score == "preservation":
            return (features * self.target[rows]).sum(dim=-1)
        assert self.text is not None
        posterior = (self.scale * features @ self.text.float().T).softmax(dim=-1)
        if self.score == "confidence":
            return posterior.amax(dim=-1)
        assert self.labels is not None
        return posterior.gather(1, self.labels[rows, None]).squeeze(1)
