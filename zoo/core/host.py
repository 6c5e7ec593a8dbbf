"""What reducers, rankings and the forward loop may ask of a tower, and that one loop.

A family of towers is one file with a ``HostBlock`` and a ``Host``, a subclass of the tower's own class, which
``register_host`` lets ``zoo.reduce`` find. A reduced tower is another object that shares the modules of the user's.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import cache, partial
from importlib import import_module
from typing import Any, ClassVar, Self, TypeVar

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from zoo.core.adaptive import Adaptive, join_groups
from zoo.core.attention import Attended, PoolingQuery, attend, cls_attention
from zoo.core.learned import LearnedTokens
from zoo.core.reducer import HostSpec, Reducer
from zoo.core.tokens import Tokens, Trace


class HostBlock:
    """One block of a tower, taken apart: attention, the residual behind it, and the MLP.

    Shapes are those of ``zoo.core.attention``. ``module`` is the tower's own block number ``index``, ``probe`` is
    ``Host.probe`` where an attention pool has the query that pools. What depends on a token's place is read off
    ``Tokens.patch_idx``, ``Tokens.place`` and ``Tokens.positional``.
    """

    attn_name: ClassVar[str] = "attn"  # of the module's attention layer
    norm_names: ClassVar[tuple[str, str]] = ("norm1", "norm2")  # of the norms before attention and MLP
    pairs_places: ClassVar[bool] = False  # whether ``bias`` gives one for each pair of places

    def __init__(self, module: Any, index: int = 0, probe: Callable[[Tokens], PoolingQuery] | None = None) -> None:
        self.module, self.index, self.probe = module, index, probe

    @property
    def attn(self) -> Any:
        """The attention layer."""
        return getattr(self.module, self.attn_name)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return int(self.attn.num_heads)

    @property
    def scale(self) -> float:
        """Factor on the logits."""
        return float(self.attn.scale)

    @property
    def dropout(self) -> float:
        """Share of attention weights that are dropped now, 0 outside training."""
        return float(self.attn.dropout) if self.attn.training else 0.0

    def norm(self, x: Tensor, number: int = 1) -> Tensor:
        """Normalise tokens (B, T, D) for the attention (1) or the MLP (2)."""
        return getattr(self.module, self.norm_names[number - 1])(x)

    @abstractmethod
    def queries_keys_values(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, H, T, d) of normalised tokens; ``tokens`` says where they belong."""

    @abstractmethod
    def project(self, out: Tensor, normed: Tensor) -> Tensor:
        """Turn attended values (B, T, H * d) into what the attention layer returns, (B, T, D)."""

    def residual(self, number: int, out: Tensor) -> Tensor:
        """Return what the block adds of the result of its attention (1) or MLP (2): LayerScale, stochastic depth."""
        return out

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the attention layer's result to the residual stream."""
        return x + self.residual(1, out)

    def add_mlp(self, x: Tensor) -> Tensor:
        """Run the MLP on the residual stream and add its result."""
        return x + self.residual(2, self.module.mlp(self.norm(x, 2)))

    def bias(self, tokens: Tokens) -> Tensor | None:
        """Return the tower's own bias on the logits, broadcastable to (B, H, T, T), None for none."""
        return None

    def attend_fused(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attend by a fused kernel, to (B, H, T, d)."""
        return attend(query, key, value, bias, dropout=self.dropout)

    def attend(self, tokens: Tokens, bias: Tensor | None = None) -> Attended:
        """Normalise and attend; the same operations in the same order as the tower's own."""
        normed = self.norm(tokens.x)
        query, key, value = self.queries_keys_values(normed, tokens)
        out = self.attend_fused(query, key, value, self._whole_bias(tokens, bias)).transpose(1, 2).flatten(2)
        return Attended(self.project(out, normed), query, key, value, self.scale)

    def whole(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """Run the whole block, to (B, T, D)."""
        return self.add_mlp(self.add_attention(tokens.x, self.attend(tokens, bias).out))

    def first(self, tokens: Tokens, bias: Tensor | None = None) -> Tensor:
        """Run the block for the first token alone, (B, 1, D): exact where nothing else is read afterwards."""
        normed = self.norm(tokens.x)
        query, key, value = self.queries_keys_values(normed, tokens)
        bias = self._whole_bias(tokens, bias)
        bias = None if bias is None else bias[:, :, :1]
        out = self.attend_fused(query[:, :, :1], key, value, bias).transpose(1, 2).flatten(2)
        return self.add_mlp(self.add_attention(tokens.x[:, :1], self.project(out, normed[:, :1])))

    def cls_attention(self, tokens: Tokens) -> Tensor:
        """Return how much the class token would attend to each patch token in this block, (B, n) float32."""
        query, key, _ = self.queries_keys_values(self.norm(tokens.x), tokens)
        return cls_attention(query, key, self.scale, tokens.prefix)

    def pooling_attention(self, tokens: Tokens) -> Tensor:
        """Return how much the query that pools attends to each patch token before this block, (B, n) float32."""
        return self.cls_attention(tokens) if self.probe is None else cls_attention(*self.probe(tokens))

    def pooling_query(self, tokens: Tokens, attended: Attended) -> PoolingQuery:
        """Return the query that pools and its keys, between attention and MLP: a probe's are of the residual stream."""
        if self.probe is None:
            return PoolingQuery(attended.query[:, :, :1], attended.key, attended.scale, tokens.prefix)
        return self.probe(tokens)

    def _whole_bias(self, tokens: Tokens, bias: Tensor | None) -> Tensor | None:
        parts = [part for part in (self.bias(tokens), bias) if part is not None]
        return sum(parts[1:], parts[0]) if parts else None


Blocks = nn.ModuleList | nn.Sequential
M = TypeVar("M", bound=nn.Module)
H = TypeVar("H", bound="type[Host]")
CLASS_TOKEN, PROBE = "class token", "probe"  # the queries that can pool


class Host(nn.Module):
    """A tower with one forward loop that a reducer may shorten.

    A family subclasses this and the tower's class, in this order, and says what is abstract here.
    """

    Block: ClassVar[type[HostBlock]]
    in_place: ClassVar[bool] = False  # whether blocks write into the tokens that they are given
    blocks_prefix: str = "blocks."  # of the names of the blocks' weights
    norm_name: ClassVar[str] = "norm"  # of the norm of what leaves the tower
    projection: ClassVar[str | None] = None  # name of the linear map that gives the features, where one can be
    reducer: Reducer | None  # None for the dense tower, an ``Adaptive`` for a budget of each picture's own
    prompts: LearnedTokens | None
    grad_checkpointing: bool  # run blocks again for gradients instead of keeping what they computed
    embed_dim: int  # width D of the tokens

    @property
    def block_modules(self) -> Blocks:
        """The tower's own blocks, which ``blocks_prefix`` names."""
        blocks = self.get_submodule(self.blocks_prefix.removesuffix("."))
        assert isinstance(blocks, (nn.ModuleList, nn.Sequential))
        return blocks

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the tower's own image size."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tower's own image size."""

    @property
    @abstractmethod
    def prefix_count(self) -> int:
        """Number of tokens that are never reduced: class token, registers and learned ones."""

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Width of what ``finish`` gives."""

    @property
    @abstractmethod
    def query(self) -> str | None:
        """Which query pools: ``class token`` if there is one, else the ``probe`` of an attention pool, else None."""

    @property
    @abstractmethod
    def pools_first(self) -> bool:
        """Whether ``finish`` reads nothing but the first token."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """Turn images (B, C, H, W) into the tokens that enter block 0, with what blocks add of places."""

    @abstractmethod
    def finish(self, tokens: Tokens) -> Tensor:
        """Normalise, pool and project what left the last block; merged tokens count for as many as they stand for."""

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise tokens (B, T, D) as those that leave the tower."""
        return self.get_submodule(self.norm_name)(x)

    @abstractmethod
    def require_reducible(self) -> None:
        """Raise ValueError, with the reason, if this tower lacks what reduction needs."""

    def probe(self, tokens: Tokens) -> PoolingQuery:
        """Return the attention pool's query and the keys of the tokens, as if the blocks ended here."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.block_modules)

    def block(self, index: int) -> HostBlock:
        """Take block ``index`` apart."""
        return self.Block(self.block_modules[index], index, self.probe if self.query == PROBE else None)

    def spec(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> HostSpec:
        """Describe the tower to a reducer whose weights go to ``device`` in ``dtype``; see ``require_reducible``."""
        self.require_reducible()
        return HostSpec(
            embed_dim=self.embed_dim, depth=self.depth, grid=self.grid, query=self.query, device=device, dtype=dtype
        )

    @classmethod
    def adopt(cls, tower: nn.Module) -> Self:
        """Return another tower of the same modules and weights, of this class."""
        other = share_weights(tower, cls)
        if not isinstance(tower, Host):
            other.reducer = other.prompts = None
        return other

    def advance(
        self,
        tokens: Tokens,
        start: int = 0,
        stop: int | None = None,
        *,
        taps: Collection[int] = (),
        pooled: bool = False,
    ) -> tuple[Tokens, list[Tokens]]:
        """Run blocks ``start`` to ``stop`` - 1, None for all, on the tokens: the one forward loop.

        ``pooled`` says that the tokens are read by nobody else, and what leaves the last block by ``finish`` alone: a
        tower that pools the first token then runs that block for it alone.

        Return the tokens that leave the last block, and those that left each block in ``taps``, in order. Those of an
        adaptive tower are filled up, see ``join_groups``.
        """
        if isinstance(self.reducer, Adaptive):
            return self._advance_groups(self.reducer, tokens, start, stop, taps, pooled)
        tapped = []
        if self.in_place and not pooled:
            tokens = tokens._replace(x=tokens.x.clone())
        for index in range(start, self.depth if stop is None else stop):
            if pooled and self.pools_first and index == self.depth - 1:
                tokens = self._step(index, tokens, first=True)
            elif self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self._step, index, tokens)
            else:
                tokens = self._step(index, tokens)
            if index in taps:
                tapped.append(tokens._replace(x=tokens.x.clone()) if self.in_place else tokens)
        return tokens, tapped

    def _advance_groups(
        self, adaptive: Adaptive, tokens: Tokens, start: int, stop: int | None, taps: Collection[int], pooled: bool
    ) -> tuple[Tokens, list[Tokens]]:
        """Do what ``advance`` does, with the pictures of each budget on their own from its first block on."""
        at, stop = adaptive.first_block, self.depth if stop is None else stop
        if start > at:
            raise ValueError(f"start={start}: an adaptive tower is run in one go from block {at} on")
        tokens, tapped = self._with(None).advance(tokens, start, min(at, stop), taps=taps)
        if stop <= at:
            return tokens, tapped
        budgets = adaptive.assign(tokens)
        groups, each = [], []
        for number in budgets.unique().tolist():
            rows = (budgets == number).nonzero().squeeze(1).to(tokens.x.device)
            left, among = self.budget(number).advance(tokens.images(rows), at, stop, taps=taps, pooled=pooled)
            groups.append((rows, left))
            each.append([(rows, tap) for tap in among])
        tapped += [join_groups(parts, ranked=True) for parts in zip(*each, strict=True)]
        return join_groups(groups), tapped

    def _with(self, reducer: Reducer | None) -> Self:
        """Return another tower of the same modules with another reducer."""
        other = share_weights(self, type(self))
        other.reducer = reducer
        return other

    @property
    def adaptive(self) -> Adaptive:
        """What gives each picture a budget; ValueError for a tower in which all pictures have one keep rate."""
        if not isinstance(self.reducer, Adaptive):
            raise ValueError("this tower has one keep rate for all pictures: build it by zoo.reduce(..., budgets=FILE)")
        return self.reducer

    def budget(self, number: int) -> Self:
        """Return the tower of one budget of an adaptive tower, with all its modules and weights."""
        return self._with(self.adaptive.each[number])

    def signals(self, images: Tensor) -> Tensor:
        """Return the signal by which an adaptive tower gives images (B, C, H, W) their budgets, (B,) float32."""
        adaptive = self.adaptive
        tokens, _ = self._with(None).advance(self.embed(images), 0, adaptive.first_block)
        return adaptive.signals(tokens)

    def assign(self, images: Tensor) -> Tensor:
        """Return the keep rate that an adaptive tower gives each of images (B, C, H, W), (B,) float32 on the CPU."""
        budgets, penalty = self.adaptive.budgets, self.adaptive.penalty
        return torch.tensor(budgets.keeps)[budgets.assign(self.signals(images), penalty)]

    def _step(self, index: int, tokens: Tokens, *, first: bool = False) -> Tokens:
        """Run one block, with ``first`` for that token alone: what others become behind its attention is not read."""
        block, reducer, bias = self.block(index), self.reducer, None
        if reducer is not None:
            tokens = reducer.before_block(index, tokens, block)
            bias = reducer.attention_bias(tokens)
        if first:
            return tokens._replace(x=block.first(tokens, bias))
        if reducer is None or not reducer.needs_attention(index):
            return tokens._replace(x=block.whole(tokens, bias))
        attended = block.attend(tokens, bias)
        tokens = tokens._replace(x=block.add_attention(tokens.x, attended.out))
        if self.query is not None:
            attended = attended._replace(pooling=partial(block.pooling_query, tokens, attended))
        tokens = reducer.after_attention(index, tokens, attended)
        return tokens._replace(x=block.add_mlp(tokens.x))

    def feature_maps(
        self,
        embedded: Tokens,
        indices: int | list[int] | None,
        *,
        stop_early: bool,
        norm: bool,
        output_fmt: str,
        missing: str,
    ) -> tuple[Tokens, list[Tensor], list[Tensor]]:
        """Run the blocks, and return what is left, features of all patches after some blocks, and of prefix tokens.

        ``embedded`` are the tokens that enter the first block. The rest is as in timm's ``forward_intermediates``,
        ``missing`` as in ``Tokens.unmerge``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r}: expected NCHW or NLC")
        take, last = feature_take_indices(self.depth, indices)
        left, tapped = self.advance(embedded, stop=last + 1 if stop_early else None, taps=take)
        if norm:
            tapped = [tokens._replace(x=self.normalise(tokens.x)) for tokens in tapped]
        maps = [tokens.unmerge(missing)[:, tokens.prefix :] for tokens in tapped]
        if output_fmt == "NCHW":
            maps = [m.transpose(1, 2).unflatten(2, t.grid).contiguous() for m, t in zip(maps, tapped, strict=True)]
        return left, maps, [tokens.x[:, : tokens.prefix] for tokens in tapped]

    def features(self, images: Tensor) -> Tensor:
        """Return what ``finish`` makes of images (B, C, H, W), whatever the library's own output is."""
        tokens, _ = self.advance(self.embed(images))
        return self.finish(tokens)

    def trace(self, images: Tensor) -> Trace:
        """Run the model on images (B, C, H, W) and return what the reducer did, with the output."""
        tokens, each = self.advance(self.embed(images), taps=range(self.depth))
        return Trace.of(self.finish(tokens), each)


def share_weights(module: nn.Module, kind: type[M]) -> M:
    """Return another module, of class ``kind``, with the submodules and weights of ``module``."""
    other = kind.__new__(kind)
    nn.Module.__init__(other)
    for name, value in module.__dict__.items():
        # Registries are copied one level deep: replacing a submodule of one leaves the other alone.
        other.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return other


HOSTS: dict[type[nn.Module], type[Host]] = {}
# By library: imported when one of its towers comes along.
FAMILIES = {"open_clip": "zoo.towers.open_clip", "transformers": "zoo.towers.transformers"}


def register_host(tower: type[nn.Module]) -> Callable[[H], H]:
    """Make the class that is decorated the host of towers of exactly the class ``tower``."""

    def register(cls: H) -> H:
        HOSTS[tower] = HOSTS[cls] = cls
        return cls

    return register


def host_of(tower: nn.Module) -> type[Host]:
    """Return the host class of a tower; raise ValueError for an unknown one, or a subclass of a known one."""
    kind = type(tower)
    for library in {base.__module__.partition(".")[0] for base in kind.__mro__} & FAMILIES.keys():
        import_module(FAMILIES[library])
    if kind in HOSTS:
        return HOSTS[kind]
    towers = [base for base in HOSTS if base not in HOSTS.values()]
    names = {base: f"{base.__module__.partition('.')[0]}'s {base.__name__}" for base in towers}
    if known := [names[base] for base in kind.__mro__ if base in names]:
        raise ValueError(f"{kind.__name__} overrides parts of {known[0]}: unsupported")
    raise ValueError(
        f"{kind.__name__} is no tower that can be reduced; expected one of {', '.join(names.values())}, "
        f"or a tower of {' or '.join(FAMILIES)}"
    )


class FeatureTower(Host):
    """Any host as a tower whose output is a tensor of features, whatever the library's is; see ``give_features``."""

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D)."""
        return self.features(images)


def give_features(host: Host) -> FeatureTower:
    """Return a tower of the host's modules whose output is features."""
    kind: Any = type(host)  # typed, it would not be hashable
    return host if isinstance(host, FeatureTower) else share_weights(host, _feature_kind(kind))


@cache
def _feature_kind(host: type[Host]) -> type[FeatureTower]:
    kind = type(f"Feature{host.__name__.removeprefix('Reduced')}", (FeatureTower, host), {})
    HOSTS[kind] = kind
    return kind
