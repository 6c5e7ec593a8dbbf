"""What happened in one forward pass, for people, figures and agreement measures."""

from dataclasses import dataclass

from torch import Tensor

from zoo.tokens import Reduction, Tokens, rank_scores


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass seen from outside.

    Attributes:
        output: what ``forward`` returns for the same images.
        grid: (rows, columns) of the patch grid; N = rows * columns.
        tokens_per_block: number of tokens, prefix tokens included, that leave each block.
        final_tokens: number of patch tokens that leave the last block (a fused token counts).
        reductions: what went at each reduction point, in order; positions are grid positions.
        scores: (B, N) float, higher = kept longer, ties allowed; None when nothing was reduced.
        ranking: (B, N) int64 grid positions, most important first; None when nothing was reduced.
    """

    output: Tensor
    grid: tuple[int, int]
    tokens_per_block: tuple[int, ...]
    final_tokens: int
    reductions: tuple[Reduction, ...]
    scores: Tensor | None
    ranking: Tensor | None

    @classmethod
    def of(cls, output: Tensor, each: list[Tokens]) -> "Trace":
        """Read the trace off the tokens that left each block, first block first."""
        last = each[-1]
        rows, columns = last.grid
        scores = rank_scores(last.history, rows * columns) if last.history else None
        return cls(
            output=output,
            grid=last.grid,
            tokens_per_block=tuple(t.x.shape[1] for t in each),
            final_tokens=last.patch_count,
            reductions=last.history,
            scores=scores,
            ranking=None if scores is None else scores.argsort(dim=1, descending=True, stable=True),
        )
