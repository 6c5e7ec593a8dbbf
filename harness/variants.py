"""The models that stand side by side: one dense tower and everything that shares its weights."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from harness.golden.store import Rankings
from zoo.files import digest_of
from zoo.golden import GoldenConfig
from zoo.predictor import PredictorFile
from zoo.reducer import METHODS, Pruner, ReducerConfig, expected
from zoo.tokens import Tokens, left_at, rank_scores, tokens_of
from zoo.vit import ReducedViT, host_spec
from zoo.weights import load_predictor, with_predictors

DENSE, GOLDEN = "dense", "golden"
BLOCK = GoldenConfig.block
Asked = tuple[str, float]  # a method and its keep rate


class Oracle(Pruner):
    """Prune by the golden importance that came along with the tokens."""

    method = GOLDEN

    def importance(self, block: int, tokens: Tokens, module: Any) -> Tensor:
        """Take what ``run`` laid in."""
        assert tokens.importance is not None
        return tokens.importance


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison.

    Attributes:
        model: timm name; for ``golden`` a name that no model has, since it needs the answer.
        method: registered method, ``dense`` or ``golden``.
        keep: keep rate.
        vit: the model.
        config: the method's settings as JSON values, with the hash of its predictor if it has one.
        what: tells rows of the same name apart.
        rankings: golden rankings that a golden row prunes by and others are compared with.
    """

    model: str
    method: str
    keep: float
    vit: ReducedViT
    config: dict[str, Any]
    what: str = ""
    rankings: Rankings | None = None

    @property
    def key(self) -> str:
        """What no other row of a comparison is called."""
        return f"{self.model} {self.what}".rstrip()

    @property
    def prompted(self) -> bool:
        """Whether learned visual tokens go along, so that nothing is as in other rows."""
        return self.vit.prompts is not None

    @property
    def first_block(self) -> int:
        """First block whose computation differs from the dense tower's."""
        return len(self.vit.blocks) if self.vit.reducer is None else self.vit.reducer.first_block


def known_methods() -> tuple[str, ...]:
    """Return what ``--methods`` takes: dense, every registered method, golden."""
    return (DENSE, *sorted(METHODS), GOLDEN)


def variants(
    dense: ReducedViT, arch: str, tag: str, methods: Sequence[str], keeps: Iterable[float]
) -> list[Variant]:
    """Make the rows for a dense tower; all share its weights.

    Args:
        dense: the tower.
        arch: its timm name.
        tag: its weight tag.
        methods: from ``known_methods``.
        keeps: keep rates; the dense model appears once.

    Raises:
        ValueError: unknown method, keep rates of one name, or one that a method can't do.
    """
    rates = tuple(keeps)
    asked = [(m, keep) for m in methods for keep in ((1.0,) if m == DENSE else rates)]
    return rows_of(dense, arch, tag, asked)


def rows_of(dense: ReducedViT, arch: str, tag: str, asked: Iterable[Asked]) -> list[Variant]:
    """Make the rows for a dense tower, each method with keep rates of its own.

    Args:
        dense: the tower.
        arch: its timm name.
        tag: its weight tag.
        asked: methods from ``known_methods``, and keep rates; 1 for the dense one.

    Raises:
        ValueError: as in ``variants``.
    """
    rows: list[Variant] = []
    for method, keep in asked:
        if method not in known_methods():
            raise ValueError(f"method {method!r}: {expected(method, known_methods())}")
        if method == DENSE:
            rows.append(Variant(model=arch, method=method, keep=1.0, vit=dense, config={}))
            continue
        name = f"{arch}_{method}{round(100 * keep)}"
        for row in rows:
            if row.model == name:
                raise ValueError(
                    f"{name} twice, for keep rates {row.keep:g} and {keep:g}: give each method "
                    "once, and rates of different whole percents"
                )
        if method == GOLDEN:
            rows.append(golden_row(dense, name, ReducerConfig(keep=keep, reduce_at=(BLOCK,))))
        else:
            rows.append(reduced_row(dense, arch, tag, name, method, {"keep": keep}))
    return rows


def golden_row(dense: ReducedViT, name: str, config: ReducerConfig) -> Variant:
    """Make a row that prunes by golden rankings, which come later.

    Args:
        dense: the tower.
        name: of the row.
        config: keep rate, reduction points and schedule.
    """
    like = next(dense.blocks.parameters())
    vit = zoo.reduce(dense, method=None)
    vit.reducer = Oracle(config, host_spec(dense, device=like.device, dtype=like.dtype))
    assert config.keep is not None
    return Variant(
        model=name, method=GOLDEN, keep=config.keep, vit=vit.eval(), config=as_json(config)
    )


def as_json(config: ReducerConfig) -> dict[str, Any]:
    """Return settings as records keep them: a tuple would never equal the list read back."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return facts


def predictors_digest(files: Sequence[PredictorFile]) -> str:
    """Return 16 hex digits that tell a model's predictors from others."""
    return digest_of(*(file.path for file in files))


def reduced_row(
    dense: ReducedViT,
    arch: str,
    tag: str,
    name: str,
    method: str,
    options: dict[str, Any],
    what: str = "",
) -> Variant:
    """Make a row of a registered method, with its predictor; raises what ``variants`` does.

    ``name`` and ``what`` are the row's own, ``options`` the method's, ``keep`` among them.
    """
    options, found = with_predictors(arch, tag, method, options, len(dense.blocks))
    vit = zoo.reduce(dense, method=method, **options)
    assert vit.reducer is not None
    config = as_json(vit.reducer.config)
    if found:
        load_predictor(vit, found)
        config["predictor"] = predictors_digest(found)
    told: dict[str, Any] = {"model": name, "method": method, "keep": options["keep"]}
    return Variant(**told, vit=vit.eval(), config=config, what=what)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a variant says about a batch.

    Attributes:
        features: (B, D) unit image features, float32.
        scores: (B, N) float, higher = kept longer; None when nothing was reduced.
        final_tokens: patch tokens left at the end.
        left: (B, N) int16, see ``zoo.tokens.left_at``; None when nothing was reduced.
        token: (B, N) int16, see ``zoo.tokens.tokens_of``; None when nothing was reduced.
    """

    features: Tensor
    scores: Tensor | None
    final_tokens: int
    left: Tensor | None = None
    token: Tensor | None = None


@torch.inference_mode()
def run(
    rows: Sequence[Variant], images: Tensor, golden: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Output]:
    """Run all rows on a batch; what rows without learned visual tokens share is computed once.

    Args:
        rows: variants of one dense tower.
        images: (B, C, H, W).
        golden: (B, N) golden importance by the key of a golden row.

    Returns:
        What each row says, by its key.
    """
    shared = _shared([row for row in rows if not row.prompted], images)
    outputs = {}
    for row in rows:
        start = 0 if row.prompted else row.first_block
        tokens = row.vit.embed(images) if row.prompted else shared[start]
        if row.method == GOLDEN:
            tokens = tokens._replace(importance=golden[row.key])
        tokens, _ = row.vit.advance(tokens, start)
        cells = tokens.grid[0] * tokens.grid[1]
        outputs[row.key] = Output(
            features=F.normalize(row.vit.finish(tokens).float(), dim=-1),
            scores=rank_scores(tokens.history, cells) if tokens.history else None,
            final_tokens=tokens.patch_count,
            left=left_at(tokens.history, cells).short() if tokens.history else None,
            token=tokens_of(tokens.history, cells).short() if tokens.history else None,
        )
    return outputs


def _shared(rows: Sequence[Variant], images: Tensor) -> dict[int, Tokens]:
    """Return what enters each block at which one of the rows parts from the dense tower."""
    if not rows:
        return {}
    dense = rows[0].vit if rows[0].vit.reducer is None else zoo.reduce(rows[0].vit, method=None)
    found = {0: dense.embed(images)}
    done = 0
    for stop in sorted({row.first_block for row in rows} - {0}):
        found[stop], _ = dense.advance(found[done], done, stop)
        done = stop
    return found
