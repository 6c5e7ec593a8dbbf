"""The tokens that travel through the forward loop, their history, and the trace read off it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

MISSING = ("nearest", "zeros")  # what `Tokens.spread` gives patches whose token was dropped


class Reduction(NamedTuple):
    """What happened at one reduction point of one forward pass; positions are in the grid, -1 for a fused token."""

    block: int  # before which, or inside which, tokens went, 0-based
    before: Tensor  # (B, n) int64 of the patch tokens that arrived
    after: Tensor  # (B, k) int64 of those that went on
    importance: Tensor  # (B, n) float, higher = keep, aligned with ``before``
    into: Tensor  # (B, n) int64 place in ``after`` of the token that each went on as, -1 if it was dropped

    def __repr__(self) -> str:
        images, arrived = self.before.shape
        counts = f"{arrived} to {self.after.shape[1]} patch tokens, {images} images"
        return f"Reduction(block {self.block}: {counts})"


class Tokens(NamedTuple):
    """A token sequence and where its patch tokens come from."""

    x: Tensor  # (B, prefix + n, D) tokens, prefix tokens first
    prefix: int  # number of prefix tokens: class token and others that are never reduced
    grid: tuple[int, int]  # rows and columns of patches; N = rows * columns
    patch_idx: Tensor  # (B, n) int64 position in the grid of each patch token, -1 for a fused token
    patch_count: int  # n, not read off ``x``, whose shape torch.fx hides
    size: Tensor | None = None  # (B, n) float number of patches that each stands for, None while all are 1
    importance: Tensor | None = None  # (B, n) float carried from an earlier reduction point
    history: tuple[Reduction, ...] = ()  # the reductions so far, oldest first
    mass: Tensor | None = None  # (B, n) float number of tokens that each is worth to attention, None for its size
    # What the tower's blocks add of places, such as rotary embeddings, for each position of the grid: reductions leave
    # it alone. None in most towers, whose tokens hold their places.
    positional: Tensor | None = None
    # (B, n, 2) float row and column of each patch token, where they count and some were merged: the mean of those that
    # it stands for. None for that of its ``patch_idx``.
    place: Tensor | None = None
    # A mass, a ``prefix`` and the ``size_bias`` of the two, which blocks between two merges share.
    known_bias: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def start(cls, x: Tensor, prefix: int, grid: tuple[int, int], positional: Tensor | None = None) -> "Tokens":
        """Wrap an embedded sequence ``x`` (B, prefix + N, D) that lost nothing yet."""
        count = grid[0] * grid[1]
        return cls(x, prefix, grid, every_position(x, count), count, positional=positional)

    @property
    def patches(self) -> Tensor:
        """The patch tokens, (B, n, D)."""
        return self.x[:, self.prefix :]

    def sizes(self) -> Tensor:
        """Return the number of patches behind each patch token, (B, n) float32."""
        return torch.ones_like(self.patch_idx, dtype=torch.float32) if self.size is None else self.size

    def size_bias(self) -> Tensor | None:
        """Return the log of each key's mass, (B, 1, 1, T), which attends in proportion to it; None while all are 1."""
        mass = self.size if self.mass is None else self.mass
        if mass is None:
            return None
        if self.known_bias is not None and self.known_bias[0] is mass and self.known_bias[1] == self.prefix:
            return self.known_bias[2]
        return F.pad(mass.log(), (self.prefix, 0))[:, None, None].to(self.x.dtype)

    def with_bias(self) -> "Tokens":
        """Return the same tokens, which know their ``size_bias``."""
        mass, bias = self.size if self.mass is None else self.mass, self.size_bias()
        return self if mass is None or bias is None else self._replace(known_bias=(mass, self.prefix, bias))

    def places(self) -> Tensor:
        """Return the row and column of each patch token, (B, n, 2) float32; a fused token needs its ``place``."""
        if self.place is not None:
            return self.place
        columns = self.grid[1]
        return torch.stack((self.patch_idx // columns, self.patch_idx % columns), dim=2).float()

    def images(self, rows: Tensor) -> "Tokens":
        """Return the sequences of the images ``rows`` (k,), without history."""
        names = ("x", "patch_idx", "size", "mass", "importance", "place")
        moved: dict[str, Any] = {name: value[rows] for name in names if (value := getattr(self, name)) is not None}
        return self._replace(**moved, history=())

    def split(self, count: int) -> list["Tokens"]:
        """Return the sequences of ``count`` images at a time."""
        return [self.images(rows) for rows in torch.arange(len(self.x), device=self.x.device).split(count)]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of these tokens as ``x`` (B, prefix + n, D), (B, D): of all that they stand for.

        The sum weighs by mass, so that a token that was stretched when it was merged counts for its parts' sum.
        """
        if self.size is None:
            return x.mean(dim=1)
        mass = F.pad(self.size if self.mass is None else self.mass, (self.prefix, 0), value=1.0)
        total = self.size.sum(dim=1, keepdim=True) + self.prefix
        return ((mass.unsqueeze(1) @ x.float()).squeeze(1) / total).to(x.dtype)

    def prune(self, index: int, importance: Tensor, count: int) -> "Tokens":
        """Keep the ``count`` >= 1 patch tokens of highest importance, in their present order.

        ``index`` is the block's number, for the history. Of equal importance (B, n) the lower
        position is kept; with nothing to drop nothing is touched.
        """
        if count >= self.patch_count:
            return self
        return self.select(index, importance, top(importance, count))._replace(patch_count=count)

    def select(self, index: int, importance: Tensor, keep_idx: Tensor) -> "Tokens":
        """Keep the patch tokens at ``keep_idx`` (B, k), positions in the current sequence."""
        count, after = keep_idx.shape[1], self.patch_idx.gather(1, keep_idx)
        into = torch.full_like(self.patch_idx, -1).scatter(1, keep_idx, every_position(self.x, count))
        return self._replace(
            x=torch.cat((self.x[:, : self.prefix], rows(self.x, self.prefix + keep_idx)), dim=1),
            patch_idx=after,
            patch_count=count,
            size=None if self.size is None else self.size.gather(1, keep_idx),
            mass=None if self.mass is None else self.mass.gather(1, keep_idx),
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
        count: int,
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
            count: n - r, which torch.fx can't read off ``gone``.
            stay: (B, n - r) int64, all other positions in the order of the new sequence; None for ascending.
            rescale: stretch a merged token to the norm of the longest of its parts (MLERP of ToFu, arXiv 2312.01026).
                Its mass is its parts' by the same factor: its value, which LayerNorm stretches whatever we do, would
                otherwise count for more than theirs.
        """
        exporting = torch.compiler.is_exporting()
        idx, own = self.patch_idx, every_position(self.x, self.patch_count)
        goal = _find_goals(gone, into, own) if exporting else own.scatter(1, gone, into)
        if stay is None:
            stay = (goal != own).int().argsort(dim=1, stable=True)[:, :count]
        short = (self._product if exporting else self._sums)(gone, into, stay, rescale)
        after = idx.gather(1, stay)
        last = torch.full_like(idx, torch.inf, dtype=torch.float32).scatter(1, gone, importance.float())
        place = torch.zeros_like(idx).scatter(1, stay, every_position(self.x, count))
        reduction = Reduction(index, idx, after, last, place.gather(1, goal))
        return short._replace(patch_idx=after, patch_count=count, history=(*self.history, reduction))

    def _sums(self, gone: Tensor, into: Tensor, stay: Tensor, rescale: bool) -> "Tokens":
        """Return what the tokens at ``stay`` become, for ``merge``, by sums over the pairs of ``gone`` and ``into``."""
        size = self.sizes()
        moved = size.gather(1, gone)
        merged_size = size.scatter_add(1, into, moved)
        share = moved / merged_size.gather(1, into)
        parts, target = rows(self.x, self.prefix + gone), rows(self.x, self.prefix + into)
        merged, stretch = _merge_parts(parts, target, into, share, rescale)
        mass = size if self.mass is None and rescale else self.mass
        if mass is not None:
            mass = mass.scatter_add(1, into, mass.gather(1, gone))
            mass = mass.scatter(1, into, mass.gather(1, into) / stretch).gather(1, stay)
        where, carried = None, self.importance
        if self.positional is not None:
            sums = self.places() * size.unsqueeze(2)
            sums = sums.scatter_add(1, into.unsqueeze(2).expand(-1, -1, 2), rows(sums, gone))
            where = rows(sums / merged_size.unsqueeze(2), stay)
        if carried is not None:
            carried = carried.scatter_reduce(1, into, carried.gather(1, gone), "amax").gather(1, stay)
        x, size = _splice(self.x, self.prefix, stay, merged, into), merged_size.gather(1, stay)
        return self._replace(x=x, size=size, mass=mass, importance=carried, place=where)

    def _product(self, gone: Tensor, into: Tensor, stay: Tensor, rescale: bool) -> "Tokens":
        """Return the same by a matrix product: runtimes of exported models are slow or wrong at scattered sums."""
        size, carried, where = self.sizes(), self.importance, None
        alike = into.unsqueeze(2) == into.unsqueeze(1)  # (B, r, r) whether two go into one
        moved, there = size.gather(1, gone), size.gather(1, into)
        merged_size = there + (alike * moved.unsqueeze(1)).sum(dim=2)
        parts, target = rows(self.patches, gone), rows(self.patches, into)
        share = (moved / merged_size).unsqueeze(2)
        merged, stretch = target + alike.to(parts.dtype) @ ((parts - target) * share.to(parts.dtype)), None
        if rescale:
            longest, own, now = (torch.linalg.vector_norm(x.float(), dim=2) for x in (parts, target, merged))
            stretch = (alike * longest.unsqueeze(1)).amax(dim=2).maximum(own) / now.clamp(min=1e-12)
            merged = merged * stretch.unsqueeze(2).to(merged.dtype)
        # Where in the old tokens, with the merged ones behind them, each of those that stay is.
        hit = stay.unsqueeze(2) == into.unsqueeze(1)
        source = (size.shape[1] + hit.int().argmax(dim=2)).where(hit.any(dim=2), stay)
        mass = size if self.mass is None and rescale else self.mass
        if mass is not None:
            total = mass.gather(1, into) + (alike * mass.gather(1, gone).unsqueeze(1)).sum(dim=2)
            mass = torch.cat((mass, total if stretch is None else total / stretch), dim=1).gather(1, source)
        if self.positional is not None:
            places = self.places()
            old, new = rows(places, into), rows(places, gone)
            mean = (old * there.unsqueeze(2) + alike.float() @ (new * moved.unsqueeze(2))) / merged_size.unsqueeze(2)
            where = rows(torch.cat((places, mean), dim=1), source)
        if carried is not None:
            most = carried.gather(1, gone).unsqueeze(1).where(alike, -torch.inf).amax(dim=2)
            carried = torch.cat((carried, most.maximum(carried.gather(1, into))), dim=1).gather(1, source)
        x = torch.cat((self.x[:, : self.prefix], rows(torch.cat((self.patches, merged), dim=1), source)), dim=1)
        size = torch.cat((size, merged_size), dim=1).gather(1, source)
        return self._replace(x=x, size=size, mass=mass, importance=carried, place=where)

    def token_of_patch(self) -> Tensor:
        """Return in which patch token each patch of the grid is, (B, N) int64 positions in the sequence, -1 if dropped.

        What went into a fused token is in that one.
        """
        first = self.history[0].before if self.history else self.patch_idx
        return follow_patches(first, self.history, every_position(self.x, self.grid[0] * self.grid[1]))

    def spread(self, missing: str = "nearest") -> Tensor:
        """Return tokens for all patches, (B, prefix + N, D), prefix tokens first: of each patch the one that it is in.

        Args:
            missing: what stands for a patch whose token was dropped: ``nearest``, the token of the nearest patch in the
                grid that has one, of equally near patches the first; or ``zeros``.

        Raises:
            ValueError: another ``missing``.
        """
        if missing not in MISSING:
            raise ValueError(f"missing={missing!r}: expected one of {', '.join(MISSING)}")
        if not self.history:
            return self.x
        token = self.token_of_patch()
        known = token >= 0
        if missing == "nearest":
            token = token.gather(1, nearest_known(known, self.grid))
        idx = torch.cat((every_position(self.x, self.prefix), self.prefix + token.clamp(min=0)), dim=1)
        spread = rows(self.x, idx)
        return spread if missing == "nearest" else spread.masked_fill(F.pad(~known, (self.prefix, 0))[..., None], 0.0)


def follow_patches(first: Tensor, history: tuple[Reduction, ...], every: Tensor) -> Tensor:
    """Return where in the sequence each patch's token is after a history, (B, N) int64, -1 if it was dropped.

    ``first`` (B, n) are the grid positions of the tokens at its start, ``every`` (B, N) those of the grid.
    """
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
    """Return the tokens of ``x`` (B, T, D) at ``idx`` (B, k), (B, k, D).

    What ``gather`` with an expanded index gives, but copied row by row, ten times as fast on a CPU.
    """
    batch, count, dim = x.shape
    first = count * torch.arange(batch, device=x.device)
    flat = x.reshape(batch * count, dim).index_select(0, (idx + first.unsqueeze(1)).flatten())
    return flat.view(batch, idx.shape[1], dim)


def _find_goals(gone: Tensor, into: Tensor, own: Tensor) -> Tensor:
    """Return ``own`` (B, n) positions with those at ``gone`` replaced by ``into``, without a scatter."""
    goal = into.unsqueeze(2).where(gone.unsqueeze(2) == own.unsqueeze(1), -1).amax(dim=1)
    return own.where(goal < 0, goal)


def _merge_parts(parts: Tensor, target: Tensor, into: Tensor, share: Tensor, rescale: bool) -> tuple[Tensor, Tensor]:
    """Return what each token at ``into`` (B, r) becomes, (B, r, D), and by which factor it was stretched, (B, r).

    ``parts`` (B, r, D) go into ``target`` (B, r, D), aligned, each with its ``share`` (B, r) of the size in the end.
    """
    # Sums are taken at the first of those that share a position.
    slot = (into.unsqueeze(2) == into.unsqueeze(1)).int().argmax(dim=2)
    moves = (parts - target) * share.unsqueeze(2).to(parts.dtype)
    flat = (slot + slot.shape[1] * torch.arange(slot.shape[0], device=slot.device).unsqueeze(1)).flatten()
    sums = torch.zeros_like(moves).flatten(0, 1).index_add(0, flat, moves.flatten(0, 1))  # far faster than scatter_add
    merged = target + sums.index_select(0, flat).view_as(moves)
    stretch = torch.ones_like(share)
    if rescale:
        arrived, there, now = (torch.linalg.vector_norm(x.float(), dim=2) for x in (parts, target, merged))
        stretch = there.scatter_reduce(1, slot, arrived, "amax").gather(1, slot) / now.clamp(min=1e-12)
        merged = merged * stretch.unsqueeze(2).to(merged.dtype)
    return merged, stretch


def _splice(x: Tensor, prefix: int, stay: Tensor, merged: Tensor, into: Tensor) -> Tensor:
    """Return the prefix tokens of ``x`` (B, T, D) and the patch tokens at ``stay``, with ``merged`` for ``into``."""
    source = every_position(x, x.shape[1])
    source = source.scatter(1, prefix + into, x.shape[1] + every_position(x, merged.shape[1]))
    patches = source.gather(1, prefix + stay)
    return rows(torch.cat((x, merged), dim=1), torch.cat((source[:, :prefix], patches), dim=1))


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
        patch_count=count + 1,
        importance=None,
        place=place,
        history=(*kept.history[:-1], last),
    )


def every_position(x: Tensor, count: int) -> Tensor:
    """Return the positions 0 to ``count`` - 1 for every sequence of ``x`` (B, T, D), (B, count)."""
    return torch.arange(count, device=x.device).expand(x.shape[0], -1)


for _function in ("every_position", "rows", "_merge_parts", "_splice"):
    torch.fx.wrap(_function)  # one call in a graph: it knows no shapes, and torch.arange no traced device


def top(importance: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` highest values per row, ascending, (B, count) int64.

    A stable sort, not ``topk``: on ties the lower position wins on every device.
    """
    return importance.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def _cells(positions: Tensor, patches: int) -> Tensor:
    """Give fused tokens, which have no place in the grid, one cell more than it has."""
    return positions.where(positions >= 0, patches)


def _mark_cells(positions: Tensor, patches: int) -> Tensor:
    """Return (B, N + 1) bool: the cells at ``positions`` (B, n)."""
    empty = positions.new_zeros(len(positions), patches + 1, dtype=torch.bool)
    return empty.scatter(1, _cells(positions, patches), True)


def rank_scores(history: tuple[Reduction, ...], patches: int) -> Tensor:
    """Order all N patches of the grid by when they went, then by their importance at that time.

    ``history`` is that of one forward pass, oldest first, at least one. Returns (B, N), higher
    = kept longer; patches of equal fate tie.
    """
    scores = history[0].before.new_zeros(len(history[0].before), patches + 1, dtype=torch.float32)
    for stage, reduction in enumerate(history):
        importance = reduction.importance.float()
        below = importance.unsqueeze(2) > importance.unsqueeze(1)
        share = below.sum(dim=2) / importance.shape[1]
        # What goes on is overwritten by the next stage; what went keeps this stage's score.
        scores = scores.scatter(1, _cells(reduction.before, patches), stage + share)
        scores = scores + _mark_cells(reduction.after, patches)
    return scores[:, :patches]


def tokens_of(history: tuple[Reduction, ...], patches: int) -> Tensor:
    """Tell in which token each patch is at the end, (B, N) int64.

    That is the grid position of its own token, or of the one that it was merged into; -1 for a
    patch that was dropped. A fused token has no position, so what went into it counts as dropped.
    """
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

    def __repr__(self) -> str:
        counts = ", ".join(f"{r.after.shape[1]} at block {r.block}" for r in self.reductions)
        size = f"{len(self.output)} images, {self.grid[0]} x {self.grid[1]} patches"
        return f"Trace({size}: {counts or 'none reduced'})"

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
