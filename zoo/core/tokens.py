"""The tokens that travel through the forward loop, their history, and the trace read off it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reduction(NamedTuple):
    """What happened at one reduction point of one forward pass; positions are in the grid, -1 for a fused token."""

    block: int  # before which, or inside which, tokens went, 0-based
    before: Tensor  # (B, n) int64 of the patch tokens that arrived
    after: Tensor  # (B, k) int64 of those that went on
    importance: Tensor  # (B, n) float, higher = keep, aligned with ``before``
    into: Tensor  # (B, n) int64 place in ``after`` of the token that each went on as, -1 if it was dropped


class Tokens(NamedTuple):
    """A token sequence and where its patch tokens come from."""

    x: Tensor  # (B, prefix + n, D) tokens, prefix tokens first
    prefix: int  # number of prefix tokens: class token and others that are never reduced
    grid: tuple[int, int]  # rows and columns of patches; N = rows * columns
    patch_idx: Tensor  # (B, n) int64 position in the grid of each patch token, -1 for a fused token
    size: Tensor | None = None  # (B, n) float number of patches that each stands for, None while all are 1
    importance: Tensor | None = None  # (B, n) float carried from an earlier reduction point
    history: tuple[Reduction, ...] = ()  # the reductions so far, oldest first
    key_weight: Tensor | None = None  # (B, n) float weight of each token in attention, None for its size
    # What blocks add for each position of the grid, such as rotary embeddings; None where tokens hold their places.
    positional: Tensor | None = None
    # (B, n, 2) float mean row and column of what each patch token stands for; None for that of its ``patch_idx``.
    place: Tensor | None = None

    @classmethod
    def start(cls, x: Tensor, prefix: int, grid: tuple[int, int], positional: Tensor | None = None) -> "Tokens":
        """Wrap an embedded sequence ``x`` (B, prefix + N, D) that lost nothing yet."""
        return cls(x, prefix, grid, every_position(x, grid[0] * grid[1]), positional=positional)

    @property
    def patches(self) -> Tensor:
        """The patch tokens, (B, n, D)."""
        return self.x[:, self.prefix :]

    @property
    def patch_count(self) -> int:
        """Number n of patch tokens."""
        return int(self.patch_idx.shape[1])  # shapes are tensors while torch traces

    def sizes(self) -> Tensor:
        """Return the number of patches behind each patch token, (B, n) float32."""
        return torch.ones_like(self.patch_idx, dtype=torch.float32) if self.size is None else self.size

    def size_bias(self) -> Tensor | None:
        """Return the log of each key's weight in attention, (B, 1, 1, T); None while all weights are 1."""
        key_weight = self.size if self.key_weight is None else self.key_weight
        return None if key_weight is None else F.pad(key_weight.log(), (self.prefix, 0))[:, None, None].to(self.x.dtype)

    def places(self) -> Tensor:
        """Return the row and column of each patch token, (B, n, 2) float32; a fused token needs its ``place``."""
        if self.place is not None:
            return self.place
        columns = self.grid[1]
        return torch.stack((self.patch_idx // columns, self.patch_idx % columns), dim=2).float()

    def images(self, rows: Tensor) -> "Tokens":
        """Return the sequences of the images ``rows`` (k,), without history."""
        names = ("x", "patch_idx", "size", "key_weight", "importance", "place")
        moved: dict[str, Any] = {name: value[rows] for name in names if (value := getattr(self, name)) is not None}
        return self._replace(**moved, history=())

    def split(self, count: int) -> list["Tokens"]:
        """Return the sequences of ``count`` images at a time."""
        return [self.images(rows) for rows in torch.arange(len(self.x), device=self.x.device).split(count)]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of these tokens as ``x`` (B, prefix + n, D), (B, D), each by its weight in attention."""
        if self.size is None:
            return x.mean(dim=1)
        key_weight = F.pad(self.size if self.key_weight is None else self.key_weight, (self.prefix, 0), value=1.0)
        total = self.size.sum(dim=1, keepdim=True) + self.prefix
        return ((key_weight.unsqueeze(1) @ x.float()).squeeze(1) / total).to(x.dtype)

    def prune(self, index: int, importance: Tensor, count: int) -> "Tokens":
        """Keep the ``count`` >= 1 patch tokens of highest importance (B, n), in their present order, see ``top``.

        ``index`` is the block's number, for the history.
        """
        return self if count >= self.patch_count else self.select(index, importance, top(importance, count))

    def select(self, index: int, importance: Tensor, keep_idx: Tensor) -> "Tokens":
        """Keep the patch tokens at ``keep_idx`` (B, k), positions in the current sequence."""
        after = self.patch_idx.gather(1, keep_idx)
        into = torch.full_like(self.patch_idx, -1).scatter(1, keep_idx, every_position(self.x, keep_idx.shape[1]))
        return self._replace(
            x=torch.cat((self.x[:, : self.prefix], rows(self.x, self.prefix + keep_idx)), dim=1),
            patch_idx=after,
            size=None if self.size is None else self.size.gather(1, keep_idx),
            key_weight=None if self.key_weight is None else self.key_weight.gather(1, keep_idx),
            importance=importance.gather(1, keep_idx),
            place=None if self.place is None else rows(self.place, keep_idx),
            history=(*self.history, Reduction(index, self.patch_idx, after, importance, into)),
        )

    def merge(
        self,
        index: int,
        gone: Tensor,
        into: Tensor,
        importance: Tensor,
        *,
        stay: Tensor | None = None,
        rescale: bool = False,
    ) -> "Tokens":
        """Merge the patch tokens at ``gone`` into those at ``into``, by the size-weighted mean.

        A token that receives nothing stays as it is, bit for bit, and so does one that receives its equal. Positions
        are those in the current sequence; several tokens may go into one, none into one that goes itself.

        Args:
            index: the block's number, for the history.
            gone: (B, r) int64, each position once, r < n.
            into: (B, r) int64, aligned with ``gone``.
            importance: (B, r) of those that go, higher = went later, for the history.
            stay: (B, n - r) int64, all other positions in the order of the new sequence; None for ascending.
            rescale: stretch a merged token to the norm of the longest of its parts (MLERP of ToFu, arXiv 2312.01026),
                and its weight in attention by the inverse, as LayerNorm stretches its value whatever we do.
        """
        exporting = torch.compiler.is_exporting()  # its runtimes are slow or wrong at scattered sums
        by_product = exporting or self.x.device.type != "cpu"  # a GPU adds up by index in any order
        put, add_up = (_put_by_mask if exporting else torch.scatter), (_add_by_product if by_product else _add_by_index)
        idx, size, own = self.patch_idx, self.sizes(), every_position(self.x, self.patch_count)
        goal = put(own, 1, gone, into)
        if stay is None:
            stay = (goal != own).int().argsort(dim=1, stable=True)[:, : self.patch_count - int(gone.shape[1])]
        alike = into.unsqueeze(2) == into.unsqueeze(1)  # (B, r, r) whether two go into one
        pairs = alike if by_product else alike.int().argmax(dim=2)
        # Where in the old tokens, with the merged ones behind them, each of those that stay is.
        source = put(own, 1, into, self.patch_count + every_position(self.x, gone.shape[1])).gather(1, stay)

        moved, there = size.gather(1, gone).unsqueeze(2), size.gather(1, into).unsqueeze(2)
        total = add_up(pairs, there, moved)
        parts, target = rows(self.x, self.prefix + gone), rows(self.x, self.prefix + into)
        moves = (parts - target) * (moved / total).to(parts.dtype)
        merged = target + add_up(pairs, torch.zeros_like(moves), moves)
        key_weight = size if self.key_weight is None and rescale else self.key_weight
        if key_weight is not None:
            heavier = add_up(
                pairs, key_weight.gather(1, into).unsqueeze(2), key_weight.gather(1, gone).unsqueeze(2)
            ).squeeze(2)
        if rescale:
            arrived, before, now = (torch.linalg.vector_norm(x.float(), dim=2) for x in (parts, target, merged))
            stretch = (alike * arrived.unsqueeze(1)).amax(dim=2).maximum(before) / now.clamp(min=1e-12)
            merged, heavier = merged * stretch.unsqueeze(2).to(merged.dtype), heavier / stretch
        if key_weight is not None:
            key_weight = put(key_weight, 1, into, heavier).gather(1, stay)
        place, carried = None, self.importance
        if self.positional is not None:
            places = self.places()
            sums = add_up(pairs, rows(places, into) * there, rows(places, gone) * moved)
            place = rows(torch.cat((places, sums / total), dim=1), source)
        if carried is not None:
            most = torch.where(alike, carried.gather(1, gone).unsqueeze(1), -torch.inf).amax(dim=2)
            carried = torch.cat((carried, most.maximum(carried.gather(1, into))), dim=1).gather(1, source)

        after = idx.gather(1, stay)
        last = torch.full_like(idx, torch.inf, dtype=torch.float32).scatter(1, gone, importance.float())
        new = torch.zeros_like(idx).scatter(1, stay, every_position(self.x, stay.shape[1]))
        sequence = torch.cat((every_position(self.x, self.prefix), self.prefix + source), dim=1)
        return self._replace(
            x=rows(torch.cat((self.x, merged), dim=1), sequence),
            patch_idx=after,
            size=put(size, 1, into, total.squeeze(2)).gather(1, stay),
            key_weight=key_weight,
            importance=carried,
            place=place,
            history=(*self.history, Reduction(index, idx, after, last, new.gather(1, goal))),
        )

    def token_of_patch(self) -> Tensor:
        """Return which patch token each patch of the grid is in, (B, N) int64 places in the sequence, -1 for none."""
        first = self.history[0].before if self.history else self.patch_idx
        return follow_patches(first, self.history, every_position(self.x, self.grid[0] * self.grid[1]))

    def unmerge(self, missing: str = "nearest") -> Tensor:
        """Return tokens for all patches, (B, prefix + N, D), prefix tokens first: of each patch the one that it is in.

        For a patch whose token was dropped stands that of the ``nearest`` patch, the first of equals, or ``zeros``.
        """
        if missing not in ("nearest", "zeros"):
            raise ValueError(f"missing={missing!r}: expected one of nearest, zeros")
        if not self.history:
            return self.x
        token = self.token_of_patch()
        known = token >= 0
        if missing == "nearest":
            token = token.gather(1, nearest_known(known, self.grid))
        idx = torch.cat((every_position(self.x, self.prefix), self.prefix + token.clamp(min=0)), dim=1)
        unmerged = rows(self.x, idx)
        return (
            unmerged if missing == "nearest" else unmerged.masked_fill(F.pad(~known, (self.prefix, 0))[..., None], 0.0)
        )


def follow_patches(first: Tensor, history: tuple[Reduction, ...], every: Tensor) -> Tensor:
    """Do what ``Tokens.token_of_patch`` does, for a start at grid positions ``first`` (B, n) of ``every`` (B, N)."""
    token = torch.full_like(every, -1).scatter(1, first, every)
    for reduction in history:
        token = reduction.into.gather(1, token.clamp(min=0)).where(token >= 0, -1)
    return token


def nearest_known(known: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the nearest patch of a grid that is ``known`` (B, N) bool to each one, (B, N) int64; of equals the first.

    Squared distances are the sum of that between rows and that between columns, so each is minimised in turn.
    """
    count = known.shape[1]
    position = torch.arange(count, device=known.device)
    far = 2 * count * count * count
    cost = position.where(known, far).unflatten(1, grid)  # squared distance times N, plus the position
    for side in grid:
        line = torch.arange(side, device=known.device)
        apart = (line.unsqueeze(1) - line).square() * count
        cost = (cost.unsqueeze(1) + apart.unsqueeze(2)).amin(dim=2).transpose(1, 2)
    return cost.flatten(1) % count


def rows(x: Tensor, idx: Tensor) -> Tensor:
    """Return the tokens of ``x`` (B, T, D) at ``idx`` (B, k), (B, k, D), ten times as fast as ``gather`` on a CPU."""
    batch, count, dim = x.shape
    first = count * torch.arange(batch, device=x.device)
    flat = x.reshape(batch * count, dim).index_select(0, (idx + first.unsqueeze(1)).flatten())
    return flat.view(batch, idx.shape[1], dim)


def _add_by_index(slot: Tensor, there: Tensor, moved: Tensor) -> Tensor:
    """Add rows ``moved`` (B, r, C) to those of ``there`` (B, r, C), all that go into one at the first of them.

    ``slot`` (B, r) is where that is. Far faster than ``scatter_add``.
    """
    flat = (slot + slot.shape[1] * torch.arange(slot.shape[0], device=slot.device).unsqueeze(1)).flatten()
    return there.flatten(0, 1).index_add(0, flat, moved.flatten(0, 1)).index_select(0, flat).view_as(there)


def _add_by_product(alike: Tensor, there: Tensor, moved: Tensor) -> Tensor:
    """Do the same by a matrix product; ``alike`` (B, r, r) says which go into one."""
    with torch.autocast("cuda", enabled=False):
        return there + alike.to(moved.dtype) @ moved


def _put_by_mask(x: Tensor, _dim: int, idx: Tensor, values: Tensor) -> Tensor:
    """Return ``x`` (B, n), not negative, with ``values`` (B, r) at ``idx`` (B, r), as ``torch.scatter`` does."""
    put = values.unsqueeze(2).where(idx.unsqueeze(2) == every_position(x, x.shape[1]).unsqueeze(1), -1).amax(dim=1)
    return x.where(put < 0, put)


def append_fused(kept: Tokens, tokens: Tokens, importance: Tensor) -> Tokens:
    """Append the attention-weighted sum of the tokens that ``kept`` lost, at position -1."""
    count = kept.patch_count
    order = importance.argsort(dim=1, descending=True, stable=True)
    weight = importance.scatter(1, order[:, :count], 0.0).to(tokens.x.dtype)
    fused = weight.unsqueeze(1) @ tokens.patches
    nowhere = kept.patch_idx.new_full((kept.patch_idx.shape[0], 1), -1)
    last = kept.history[-1]
    last = last._replace(after=torch.cat((last.after, nowhere), dim=1), into=last.into.where(last.into >= 0, count))
    place = None
    if tokens.positional is not None:  # the mean of theirs by the same weights
        gone = weight.unsqueeze(1).float()
        mean = (gone @ tokens.places()) / gone.sum(dim=2, keepdim=True)
        place = torch.cat((kept.places(), mean), dim=1)
    return kept._replace(
        x=torch.cat((kept.x, fused), dim=1),
        patch_idx=torch.cat((kept.patch_idx, nowhere), dim=1),
        importance=None,
        place=place,
        history=(*kept.history[:-1], last),
    )


def every_position(x: Tensor, count: int) -> Tensor:
    """Return the positions 0 to ``count`` - 1 for every sequence of ``x`` (B, T, D), (B, count)."""
    return torch.arange(count, device=x.device).expand(x.shape[0], -1)


def top(importance: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` highest values, ascending, (B, count) int64; ties go to the lower."""
    return importance.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def rank_scores(history: tuple[Reduction, ...], patches: int) -> Tensor:
    """Order all N patches by when they went, then by their importance at that time, (B, N), higher = kept longer."""
    cells = patches + 1  # the last for fused tokens, at position -1
    scores = history[0].before.new_zeros(len(history[0].before), cells, dtype=torch.float32)
    for stage, reduction in enumerate(history):
        importance = reduction.importance.float()
        share = (importance.unsqueeze(2) > importance.unsqueeze(1)).sum(dim=2) / importance.shape[1]
        # What goes on is overwritten by the next stage; what went keeps this stage's score.
        scores = scores.scatter(1, reduction.before % cells, stage + share)
        scores = scores.scatter_add(1, reduction.after % cells, torch.ones_like(reduction.after, dtype=torch.float32))
    return scores[:, :patches]


def tokens_of(history: tuple[Reduction, ...], patches: int) -> Tensor:
    """Return the grid position of the token that each patch is in at the end, (B, N) int64, -1 if dropped or fused."""
    token = follow_patches(history[0].before, history, every_position(history[0].before, patches))
    return history[-1].after.gather(1, token.clamp(min=0)).where(token >= 0, -1)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass, for figures and agreement measures; ``scores`` and ``ranking`` are None if nothing went."""

    output: Tensor  # what ``forward`` returns for the same images
    grid: tuple[int, int]  # rows and columns of patches; N = rows * columns
    tokens_per_block: tuple[int, ...]  # how many leave each block, prefix tokens included
    final_tokens: int  # number n of patch tokens that leave the last block; a fused token counts
    kept: Tensor  # (B, n) int64 grid positions of these, in the order of the sequence; -1 for a fused token
    reductions: tuple[Reduction, ...]  # what went at each reduction point, in order
    scores: Tensor | None  # (B, N) float, higher = kept longer, ties allowed
    ranking: Tensor | None  # (B, N) int64 grid positions, most important first

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
            kept=last.patch_idx,
            reductions=last.history,
            scores=scores,
            ranking=None if scores is None else scores.argsort(dim=1, descending=True, stable=True),
        )
