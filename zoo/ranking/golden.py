"""Golden Rankings: remove windows of patch tokens, or merge them into others, and watch CLIP's output.

Source: arXiv 2409.14607, section 3.2, with the corrections that docs/design.md lists. The paper removes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zoo.core.host import Host
from zoo.core.messages import PRECISIONS, check_fields, expected
from zoo.core.tokens import Tokens, every_position, rank_scores, top
from zoo.ranking.suffix import Suffix, follow, follow_merges
from zoo.ranking.windows import distances, mean_over_windows, members, merge_windows, outside, windows
from zoo.towers.lean import is_lean, special_layer

SCORES = ("preservation", "label", "confidence")
ACTIONS = ("remove", "merge")
FOLLOWED = "follow:0"  # the only approximation that a greedy search or merging can take


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Score what is left of some images; a high score says that what went was dispensable.

    ``preservation`` is the cosine with ``target`` (B, D), unit features of the whole images.
    ``label`` is the posterior of the true class in ``labels`` (B,), ``confidence`` the highest of
    any class, from ``scale`` times the cosines with unit class features ``text`` (classes, D).
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


def greedy_importance(suffix: Suffix, start: Tokens, judge: Judge, config: "GoldenConfig") -> Tensor:
    """Rank patches by when an iterative search takes them: 0 goes first, N - 1 last, (B, N).

    In every round each single token is removed, or merged into its nearest, and the score is against what is left.
    Against the whole image, patches whose removal undoes what earlier ones did would look dispensable, and all would
    go in one round. Merged tokens stay merged: each of those that go takes the nearest that stays.
    """
    tokens, count = start, start.patch_count
    assert config.greedy is not None
    while (left := tokens.patch_count) > 0:
        cells = torch.arange(left, device=start.x.device).unsqueeze(1)
        importance = torch.zeros_like(tokens.patch_idx, dtype=torch.float32)
        if left > 1:  # the last one has none to go into
            target, features = encode_changes(suffix, tokens, cells, config)
            rows = torch.arange(len(target), device=target.device).repeat_interleave(left)
            scores = replace(judge, target=target)(features.flatten(0, 1), rows)
            importance = -scores.unflatten(0, (-1, left))
        stay = top(importance, max(0, left - config.greedy))
        if config.action == "merge" and stay.shape[1]:
            tokens = _merge_away(tokens, importance, stay)
        else:
            tokens = tokens.select(0, importance, stay)
    best_first = rank_scores(tokens.history, count).argsort(dim=1, descending=True, stable=True)
    return (count - 1 - best_first.argsort(dim=1)).float()


def encode_changes(suffix: Suffix, tokens: Tokens, cells: Tensor, config: "GoldenConfig") -> tuple[Tensor, Tensor]:
    """Compute unit features of what is there, (B, D), and without each window of ``cells`` (W, r * r), (B, W, D)."""
    rows = torch.arange(len(tokens.x), device=tokens.x.device)
    every = rows.repeat_interleave(len(cells))
    if config.action == "merge":
        merges = merge_windows(tokens, cells)
        if config.approximate == FOLLOWED:
            return follow_merges(suffix, tokens, merges)
        extended, idx = merges.copies(tokens)
        target = suffix.features(tokens, rows, tokens.token_of_patch())
        features = suffix.features(extended, every, idx.flatten(0, 1))
    elif config.approximate is not None:
        return follow(suffix, tokens, cells, followed(config.approximate))
    else:
        target = suffix.features(tokens, rows, every_position(tokens.x, tokens.patch_count))
        kept = outside(members(cells, tokens.patch_count)).repeat(len(rows), 1)
        features = suffix.features(tokens, every, kept)
    return target, features.unflatten(0, (len(rows), -1))


def _merge_away(tokens: Tokens, importance: Tensor, stay: Tensor) -> Tokens:
    """Merge all patch tokens but those at ``stay`` (B, k) into the nearest of these."""
    away = torch.ones_like(importance, dtype=torch.bool).scatter(1, stay, False)
    gone = away.nonzero()[:, 1].reshape(len(stay), -1)
    into = distances(tokens).masked_fill(away.unsqueeze(1), torch.inf).argmin(dim=-1).gather(1, gone)
    return tokens.merge(0, gone, into, importance.gather(1, gone), rescale=True)


@dataclass(frozen=True, kw_only=True)
class GoldenConfig:
    """How a golden ranking is made.

    Attributes:
        score: see ``Judge``.
        action: what happens to a window: ``remove``, or ``merge`` each of its patches into its nearest outside.
        block: patches go at the input of this block, 0-based.
        window: side of the square window, in patches.
        stride: step of the window, in patches; a last window touches the border.
        greedy: single patches that go for good in each round of an iterative search; None for one-shot.
        approximate: ``follow:N`` recomputes the class token and N patch tokens per window, see ``follow``; None for
            removing or merging every window. Merging and a greedy search take ``follow:0`` alone, for single patches.
    """

    score: str = "preservation"
    action: str = "remove"
    block: int = 3
    window: int = 2
    stride: int = 1
    greedy: int | None = None
    approximate: str | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("window", "stride", "greedy"), "[1, inf)")
        check_fields(self, score=SCORES, action=ACTIONS, block="[0, inf)", **counts)
        if self.stride > self.window:
            raise ValueError(f"stride={self.stride!r}: more than window={self.window} leaves patches out")
        if self.approximate is not None:
            followed(self.approximate)
        merge, search = self.action == "merge", self.greedy is not None
        if (merge or search) and self.approximate not in (None, FOLLOWED):
            what = f"greedy={self.greedy}" if search else f"action={self.action!r}"
            raise ValueError(f"{what} with approximate={self.approximate!r}: expected none, or {FOLLOWED!r}")
        if self.window > 1 and (search or (merge and self.approximate)):
            raise ValueError(f"window={self.window}: this search goes by single patches; expected window=1")

    def describe(self) -> str:
        """Return the settings in words."""
        greedy = f"greedy by {self.greedy}" if self.greedy else ""
        way = ", ".join(filter(None, (greedy, self.approximate))) or "exact"
        size = f"{self.window} x {self.window} by {self.stride}"
        action = "" if self.action == "remove" else " by merging"
        return f"{self.score}{action} before block {self.block}, windows of {size}, {way}"


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
        _check(model, config, text)
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: {expected(precision, PRECISIONS)}")
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ValueError(f"batch={batch!r}: expected an integer from 1")
        self.model = model
        self.config = config
        self.suffix = Suffix(model, config.block, batch, precision=precision)
        self.text = None if text is None else text.to(self.suffix.device)
        self.scale = scale

    def importance(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score the patches of images (B, C, H, W), with labels (B,) for ``label``.

        Returns:
            (B, N) float32 on the CPU, higher = keep: minus the mean score of the windows that cover the patch; for a
            greedy search the place in the order of removal.
        """
        return self.importances(images, (self.config.score,), labels)[self.config.score]

    @torch.inference_mode()
    def importances(self, images: Tensor, scores: Sequence[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Score patches by several scores, each as ``importance`` does, in the passes of one.

        A greedy search can't share: its score decides what is removed next.

        Raises:
            ValueError: a score that is unknown, needs text or labels, or can't share passes.
        """
        config, suffix = self.config, self.suffix
        if len(scores) > 1 and config.greedy is not None:
            raise ValueError(f"greedy={config.greedy} goes by one score, got {', '.join(scores)}")
        for score in scores:
            _check_text(replace(config, score=score), self.text)
        if "label" in scores:
            labels = self._labels(labels, len(images))
        embedded = self.model.embed(images.to(suffix.device, torch.float32))
        start, _ = self.model.advance(embedded, stop=config.block)
        common: dict[str, Any] = {"text": self.text, "scale": self.scale, "labels": labels}
        cells = windows(start.grid, config.window, config.stride).to(suffix.device)
        if config.greedy is not None:
            judge = Judge(score=scores[0], target=start.x, **common)
            return {scores[0]: greedy_importance(suffix, start, judge, config).cpu()}
        target, features = encode_changes(suffix, start, cells, config)
        flat, every = features.flatten(0, 1), torch.arange(len(images), device=suffix.device)
        every = every.repeat_interleave(len(cells))
        judges = {score: Judge(score=score, target=target, **common) for score in scores}
        marks = {score: judge(flat, every).unflatten(0, (-1, len(cells))) for score, judge in judges.items()}
        return {score: -mean_over_windows(own, cells, start.patch_count).cpu() for score, own in marks.items()}

    def _labels(self, labels: Tensor | None, count: int) -> Tensor:
        if labels is None or len(labels) != count:
            raise ValueError("score='label' needs labels: (B,) class indices")
        assert self.text is not None
        if labels.min() < 0 or labels.max() >= len(self.text):
            bad = int(labels[(labels < 0) | (labels >= len(self.text))][0])
            raise ValueError(f"label {bad}: there are classes 0 to {len(self.text) - 1}")
        return labels.to(self.suffix.device)


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


def _check(model: Host, config: GoldenConfig, text: Tensor | None) -> None:
    """Refuse what can't be scored."""
    if config.block >= model.depth:
        raise ValueError(f"block={config.block}: this tower has blocks 0 to {model.depth - 1}")
    have = ", ".join(sorted({str(parameter.dtype) for parameter in model.parameters()}))
    lean = filter(is_lean, model.block_modules[config.block :])
    special = next(filter(None, map(special_layer, lean)), None)
    problems = {
        "the dense model: zoo.reduce(model, method=None)": model.reducer is not None,
        "the model in evaluation mode: model.eval()": model.training,
        f"a float32 tower, this one has {have}: call model.float(), then precision='bfloat16'": have != "torch.float32",
        f"plain linear layers, this tower has {special}; merge adapters, or rank before quantizing": bool(special),
    }
    for need, lacking in problems.items():
        if lacking:
            raise ValueError(f"golden rankings need {need}")
    windows(model.grid, config.window, config.stride)
    if config.window == max(model.grid):
        grid = "{} x {}".format(*model.grid)
        raise ValueError(f"window={config.window!r}: the whole {grid} patch grid, so no patch would rank first")
    if config.approximate is not None:
        _check_followed(config, model)
    _check_text(config, text)


def _check_text(config: GoldenConfig, text: Tensor | None) -> None:
    if config.score != "preservation" and text is None:
        raise ValueError(f"score={config.score!r} needs text: (classes, D) unit class features")


def followed(spec: str) -> int:
    """Return the patch tokens that a spec such as ``follow:4`` recomputes per window; raise ValueError for others."""
    if not (found := re.fullmatch(r"follow:([0-9]+)", spec)):
        raise ValueError(f"approximate={spec!r}: expected follow:N with an integer N from 0, patch tokens per window")
    return int(found[1])


def _check_followed(config: GoldenConfig, model: Host) -> None:
    """Refuse more tokens than a window leaves, and towers whose features ``follow`` can't compute."""
    assert config.approximate is not None
    most, named = model.grid[0] * model.grid[1] - config.window**2, f"approximate={config.approximate!r}"
    if followed(config.approximate) > most:
        raise ValueError(f"{named}: expected a number from 0 to {most} here")
    if not model.pools_first:
        raise ValueError(
            f"{named} needs features that come from the class token, which this tower pools with others or lacks; "
            "expected none"
        )
    if model.block(config.block).pairs_places:
        raise ValueError(f"{named} knows no bias for pairs of places, which this tower has; expected none")
