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
    patch_idx: Tensor  # (B, n) int64 position in the grid of each patch token, -1 for a fused or filling token
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
        moves, size = Moves.of(gone, into, stay, self.patch_count), self.sizes()
        key_weight = size if self.key_weight is None and rescale else self.key_weight
        weights = size.unsqueeze(1) if key_weight is None else torch.stack((size, key_weight), dim=1)
        totals = moves.add(weights)
        parts, target = (rows(self.x, self.prefix + place) for place in (gone, into))
        merged = moves.mean(target, parts, size.gather(1, gone) / totals[:, 0])
        if rescale:
            stretch = moves.stretch(target, parts, merged)
            merged = merged * stretch.unsqueeze(2).to(merged.dtype)
            totals = torch.stack((totals[:, 0], totals[:, 1] / stretch), dim=1)
        weights = moves.take(weights, totals)
        sequence = torch.cat((every_position(self.x, self.prefix), self.prefix + moves.source), dim=1)
        patch_idx = self.patch_idx.gather(1, moves.stay)
        return self._replace(
            x=rows(torch.cat((self.x, merged), dim=1), sequence),
            patch_idx=patch_idx,
            size=weights[:, 0],
            key_weight=None if key_weight is None else weights[:, 1],
            importance=None if self.importance is None else moves.take_most(self.importance),
            place=None if self.positional is None else moves.take_mean(self.places(), size, totals[:, :1]),
            history=(*self.history, moves.record(index, self.patch_idx, patch_idx, importance)),
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
        distance = (line.unsqueeze(1) - line).square() * count
        cost = (cost.unsqueeze(1) + distance.unsqueeze(2)).amin(dim=2).transpose(1, 2)
    return cost.flatten(1) % count


def rows(x: Tensor, idx: Tensor) -> Tensor:
    """Return the tokens of ``x`` (B, T, D) at ``idx`` (B, k), (B, k, D), ten times as fast as ``gather`` on a CPU."""
    return x.flatten(0, 1).index_select(0, _flat(idx, x.shape[1])).view(x.shape[0], idx.shape[1], x.shape[2])


def _flat(idx: Tensor, count: int) -> Tensor:
    """Return the positions ``idx`` (B, k) in B sequences of ``count`` tokens as those in one of all, (B * k)."""
    return (idx + count * torch.arange(idx.shape[0], device=idx.device).unsqueeze(1)).flatten()


class Moves(NamedTuple):
    """Which r of n patch tokens go into which others; all positions are int64 in the sequence before."""

    gone: Tensor  # (B, r) each position once
    into: Tensor  # (B, r) aligned with ``gone``
    stay: Tensor  # (B, n - r) all other positions, in the order of the new sequence
    goal: Tensor  # (B, n) ``into`` of the tokens that go, the own position of all others
    place: Tensor  # (B, n) of those that stay, where each is in the new sequence
    last: Tensor  # (B, n) the last of the moves that end at each position, counted from n; its own where none does
    alike: Tensor | None  # (B, r, r) bool, whether two go into the same; None to add up by index

    @classmethod
    def of(cls, gone: Tensor, into: Tensor, stay: Tensor | None, count: int) -> "Moves":
        """Plan the moves among ``count`` patch tokens; without ``stay`` the others keep their order."""
        every, going = every_position(gone, count), int(gone.shape[1])
        goal = _put(every, gone, into)
        if stay is None:
            place = partition(goal == every)
            stay = invert(place)[:, : count - going]
        else:
            place = _put(torch.zeros_like(goal), stay, every_position(gone, count - going))
        last = _put(every, into, count + every_position(gone, going))
        # A GPU adds up by index in any order, and runtimes of exported models are slow or wrong at scattered sums.
        by_index = gone.device.type == "cpu" and not torch.compiler.is_exporting()
        return cls(gone, into, stay, goal, place, last, None if by_index else into.unsqueeze(2) == into.unsqueeze(1))

    @property
    def source(self) -> Tensor:
        """Where each new token is in the n old ones followed by the r merged ones, (B, n - r)."""
        return self.last.gather(1, self.stay)

    @property
    def slot(self) -> Tensor:
        """The last of the moves that end where each one does, (B, r)."""
        return self.last.gather(1, self.into) - self.goal.shape[1]

    def add(self, values: Tensor) -> Tensor:
        """Return for each move the sum (B, C, r) of ``values`` (B, C, n) of all tokens that meet there."""
        into, parts = _each(self.into, values), values.gather(2, _each(self.gone, values))
        if self.alike is None:
            return values.scatter_add(2, into, parts).gather(2, into)
        return values.gather(2, into) + _product(parts, self.alike)

    def mean(self, target: Tensor, parts: Tensor, share: Tensor) -> Tensor:
        """Return for each move the mean (B, r, D) of the tokens that meet there.

        It is a step from ``target`` (B, r, D), the token that stays, towards each of ``parts`` (B, r, D) by its
        ``share`` (B, r) of the whole, which leaves a token that receives its equal as it is.
        """
        steps = (parts - target) * share.unsqueeze(2).to(parts.dtype)
        if self.alike is not None:
            return target + _product(self.alike, steps)
        flat = _flat(self.slot, steps.shape[1])
        # Far faster than ``scatter_add``.
        sums = torch.zeros_like(steps).flatten(0, 1).index_add_(0, flat, steps.flatten(0, 1))
        return target + sums.index_select(0, flat).view_as(steps)

    def stretch(self, target: Tensor, parts: Tensor, merged: Tensor) -> Tensor:
        """Return the factors (B, r) that give ``merged`` tokens (B, r, D) the norm of the longest that met."""
        before, arrived, now = (torch.linalg.vector_norm(x.float(), dim=2) for x in (target, parts, merged))
        return self._most(before, arrived) / now.clamp(min=1e-12)

    def take(self, values: Tensor, merged: Tensor) -> Tensor:
        """Return the values (B, C, n - r) of the new sequence, by the old ones (B, C, n) and each move's (B, C, r)."""
        return torch.cat((values, merged), dim=2).gather(2, _each(self.source, values))

    def take_most(self, values: Tensor) -> Tensor:
        """Return the largest of ``values`` (B, n) in each token of the new sequence, (B, n - r)."""
        most = self._most(values.gather(1, self.into), values.gather(1, self.gone))
        return self.take(values.unsqueeze(1), most.unsqueeze(1)).squeeze(1)

    def take_mean(self, values: Tensor, size: Tensor, total: Tensor) -> Tensor:
        """Return the mean of ``values`` (B, n, C) by ``size`` (B, n) in each token of the new sequence.

        ``total`` (B, 1, r) is the size of each move's token.
        """
        values = values.transpose(1, 2)
        return self.take(values, self.add(values * size.unsqueeze(1)) / total).transpose(1, 2)

    def record(self, block: int, before: Tensor, after: Tensor, importance: Tensor) -> Reduction:
        """Return the moves as history has them; ``importance`` (B, r) is of the tokens that go."""
        last = torch.full_like(before, torch.inf, dtype=torch.float32).scatter(1, self.gone, importance.float())
        return Reduction(block, before, after, last, self.place.gather(1, self.goal))

    def _most(self, target: Tensor, parts: Tensor) -> Tensor:
        """Return for each move the most (B, r) of what the token that stays has (B, r) and what arrives (B, r)."""
        if self.alike is None:
            return target.scatter_reduce(1, self.slot, parts, "amax").gather(1, self.slot)
        return torch.where(self.alike, parts.unsqueeze(1), -torch.inf).amax(dim=2).maximum(target)


def partition(first: Tensor) -> Tensor:
    """Return where each position goes if those that ``first`` (B, n) bool names come first, in order, (B, n)."""
    every, before = every_position(first, first.shape[1]), first.cumsum(dim=1)
    return torch.where(first, before - 1, every - before + before[:, -1:])


def invert(place: Tensor) -> Tensor:
    """Return the position that goes to each place, (B, n), by the ``place`` (B, n) of each position."""
    return _put(place, place, every_position(place, place.shape[1]))


def ascending(values: Tensor) -> Tensor:
    """Return the positions of ``values`` (B, n) from the lowest on, (B, n); of equals the first comes first.

    Exported without sorting, which runtimes do slowly: a value's place is the number of those before it.
    """
    if not torch.compiler.is_exporting():
        return values.argsort(dim=1, stable=True)
    own, other = values.unsqueeze(2), values.unsqueeze(1)
    position = torch.arange(values.shape[1], device=values.device)
    before = (other < own) | ((other == own) & (position < position.unsqueeze(1)))
    return invert(before.sum(dim=2))


def lowest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest of ``values`` (B, m, n) in each row and its position, of equals the first, (B, m) each."""
    if not torch.compiler.is_exporting():
        return values.min(dim=2)
    least, count = values.amin(dim=2), values.shape[2]  # runtimes sort for both at once
    position = torch.arange(count, device=values.device)
    return least, position.where(values <= least.unsqueeze(2), count - 1).amin(dim=2)


def _each(idx: Tensor, values: Tensor) -> Tensor:
    """Return ``idx`` (B, k) for each channel of ``values`` (B, C, n), (B, C, k)."""
    return idx.unsqueeze(1).expand(-1, values.shape[1], -1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two batches of matrices, of which one is bool, in the other's precision."""
    dtype = left.dtype if right.dtype == torch.bool else right.dtype
    with torch.autocast("cuda", enabled=False):
        return left.to(dtype).bmm(right.to(dtype))


def _put(x: Tensor, idx: Tensor, values: Tensor) -> Tensor:
    """Return ``x`` (B, n), not negative, with ``values`` (B, r) at ``idx`` (B, r); exported as a mask."""
    if not torch.compiler.is_exporting():
        return x.scatter(1, idx, values)
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
    """One forward pass, for figures and agreement measures; ``scores`` and ``ranking`` are None if nothing went.

    An adaptive tower's numbers of tokens are those of the picture that has most.
    """

    output: Tensor  # what ``forward`` returns for the same images
    grid: tuple[int, int]  # rows and columns of patches; N = rows * columns
    tokens_per_block: tuple[int, ...]  # how many leave each block, prefix tokens included
    final_tokens: int  # number n of patch tokens that leave the last block; a fused token counts
    kept: Tensor  # (B, n) int64 grid positions of these, in the order of the sequence; -1 for a fused or filling one
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
