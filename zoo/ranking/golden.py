"""Golden Rankings: remove windows of patch tokens, and watch CLIP's output.

Source: arXiv 2409.14607, section 3.2, with the corrections that docs/design.md lists.
"""

import torch
from torch import Tensor

from zoo.core.host import Host
from zoo.core.recipes import GoldenConfig, patches_to_follow
from zoo.core.settings import PRECISIONS, expected
from zoo.core.tokens import Tokens, every_position, rank_scores, top
from zoo.ranking.suffix import Suffix, follow, mean_over_windows, members, outside, windows
from zoo.towers.fused import is_fusible, special_layer


class GoldenEngine:
    """Make golden rankings of many images with one tower.

    Args:
        model: dense image tower in float32 whose head, if any, projects to the joint space.
        text: (classes, D) unit class features; for ``label`` and ``confidence``.
        scale: factor on cosines in the posterior (CLIP's exp of the logit scale).
        precision: of the patch tokens after the block, see ``Suffix``; ``follow`` runs in float32 whatever it is.
        batch: sequences per forward pass, None for what the free memory allows.

    Raises:
        ValueError: a model that isn't dense and float32, text that is missing, or a value out of range.
    """

    def __init__(
        self,
        model: Host,
        config: GoldenConfig,
        *,
        text: Tensor | None = None,
        scale: float = 100.0,
        precision: str = "float32",
        batch: int | None = None,
    ) -> None:
        _check(model, config)
        if config.score != "preservation" and text is None:
            raise ValueError(f"score={config.score!r} needs text: (classes, D) unit class features")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: {expected(precision, PRECISIONS)}")
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ValueError(f"batch={batch!r}: expected an integer from 1")
        self.model, self.config, self.scale = model, config, scale
        self.suffix = Suffix(model, config.block, batch, precision=precision)
        self.text = None if text is None else text.to(self.suffix.device)

    @torch.inference_mode()
    def importance(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score the patches of images (B, C, H, W), with labels (B,) for ``label``.

        Returns:
            (B, N) float32 on the CPU, higher = keep: minus the mean score of the windows that cover the patch; for a
            greedy search the place in the order of removal.
        """
        config, suffix = self.config, self.suffix
        if config.score == "label":
            if labels is None or len(labels) != len(images):
                raise ValueError("score='label' needs labels: (B,) class indices")
            assert self.text is not None
            if wrong := [label for label in labels.tolist() if not 0 <= label < len(self.text)]:
                raise ValueError(f"label {wrong[0]}: there are classes 0 to {len(self.text) - 1}")
            labels = labels.to(suffix.device)
        embedded = self.model.embed(images.to(suffix.device, torch.float32))
        start, _ = self.model.advance(embedded, stop=config.block)
        if config.greedy is not None:
            return self._search(start, labels, config.greedy).cpu()
        cells = windows(start.grid, config.window, config.stride).to(suffix.device)
        scores = self._judge(*self._encode(start, cells), labels)
        return -mean_over_windows(scores, cells, start.patch_count).cpu()

    def _encode(self, tokens: Tokens, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Compute unit features of what is there (B, D) and without each window of ``cells`` (W, r * r), (B, W, D)."""
        suffix, count = self.suffix, tokens.patch_count
        if self.config.approximate is not None:
            return follow(suffix, tokens, cells, patches_to_follow(self.config.approximate))
        rows = torch.arange(len(tokens.x), device=tokens.x.device)
        target = suffix.features(tokens, rows, every_position(tokens.x, count))
        kept = outside(members(cells, count)).repeat(len(rows), 1)
        features = suffix.features(tokens, rows.repeat_interleave(len(cells)), kept)
        return target, features.unflatten(0, (len(rows), -1))

    def _judge(self, target: Tensor, features: Tensor, labels: Tensor | None) -> Tensor:
        """Score ``features`` (B, W, D) of what is left of images with features ``target`` (B, D), (B, W) float32.

        All features are unit vectors; a high score says that what went was dispensable.
        """
        if self.config.score == "preservation":
            return (features * target.unsqueeze(1)).sum(dim=-1)
        assert self.text is not None
        posterior = (self.scale * features @ self.text.float().T).softmax(dim=-1)
        if self.config.score == "confidence":
            return posterior.amax(dim=-1)
        assert labels is not None
        return posterior.gather(2, labels[:, None, None].expand(-1, features.shape[1], 1)).squeeze(2)

    def _search(self, start: Tokens, labels: Tensor | None, step: int) -> Tensor:
        """Rank patches by when an iterative search takes them: 0 goes first, N - 1 last, (B, N).

        In every round each single token is removed, and the score is against what is left. Against the whole image,
        patches whose removal undoes what earlier ones did would look dispensable, and all would go in one round.
        """
        tokens, count = start, start.patch_count
        while (left := tokens.patch_count) > 0:
            importance = torch.zeros_like(tokens.patch_idx, dtype=torch.float32)
            if left > 1:  # the last one goes unjudged
                cells = torch.arange(left, device=start.x.device).unsqueeze(1)
                importance = -self._judge(*self._encode(tokens, cells), labels)
            tokens = tokens.select(0, importance, top(importance, max(0, left - step)))
        best_first = rank_scores(tokens.history, count).argsort(dim=1, descending=True, stable=True)
        return (count - 1 - best_first.argsort(dim=1)).float()


def golden_importance(
    model: Host,
    images: Tensor,
    config: GoldenConfig,
    *,
    text: Tensor | None = None,
    scale: float = 100.0,
    labels: Tensor | None = None,
) -> Tensor:
    """Score the patches of images (B, C, H, W) once, by ``GoldenEngine.importance``."""
    return GoldenEngine(model, config, text=text, scale=scale).importance(images, labels)


def _check(model: Host, config: GoldenConfig) -> None:
    """Refuse towers that can't be ranked, or not in this way."""
    if config.block >= model.depth:
        raise ValueError(f"block={config.block}: this tower has blocks 0 to {model.depth - 1}")
    have = ", ".join(sorted({str(parameter.dtype) for parameter in model.parameters()}))
    fused = filter(is_fusible, list(model.block_modules)[config.block :])
    special = next(filter(None, map(special_layer, fused)), None)
    problems = {
        "the dense model: zoo.reduce(model, method=None)": model.reducer is not None,
        "the model in evaluation mode: model.eval()": model.training,
        f"a float32 tower, this one has {have}: call model.float(), then precision='bfloat16'": have != "torch.float32",
        f"plain linear layers, this tower has {special}; merge adapters, or rank before quantizing": bool(special),
    }
    for need, lacking in problems.items():
        if lacking:
            raise ValueError(f"golden rankings need {need}")
    rows, columns = model.grid
    most = rows * columns - config.window**2
    windows(model.grid, config.window, config.stride)
    if config.window == max(model.grid):
        raise ValueError(
            f"window={config.window!r}: the whole {rows} x {columns} patch grid, so no patch would rank first"
        )
    if config.approximate is None:
        return
    problems = {
        f": expected a number from 0 to {most} here": patches_to_follow(config.approximate) > most,
        " needs features that come from the class token, which this tower pools with others or lacks; expected none": (
            not model.pools_first
        ),
        " knows no bias for pairs of places, which this tower has; expected none": (
            model.block(config.block).pairs_places
        ),
    }
    for reason, true in problems.items():
        if true:
            raise ValueError(f"approximate={config.approximate!r}{reason}")
