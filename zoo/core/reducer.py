"""The protocol of a token reduction method, its settings, and the registered methods."""

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from zoo.core.attention import Attended
from zoo.core.settings import check_fields, expected
from zoo.core.tokens import Tokens

SCHEDULES = ("geometric", "linear", "delayed")
SHARE = 0.4  # that block 0 has in the further work of a delayed schedule, see `delay`


def final_count(patches: int, keep: float) -> int:
    """Return round(keep * N), at least 1: the patch tokens left at the end."""
    return max(1, round(keep * patches))


def token_counts(
    patches: int, keep: float, points: tuple[int, ...], schedule: str | tuple[float, ...], depth: int = 0
) -> dict[int, int]:
    """Return the patch tokens left after each reduction point in a tower of ``depth`` blocks; see ``ReducerConfig``.

    Raises:
        ValueError: ``schedule`` has rates for more or fewer points.
    """
    last, stages = final_count(patches, keep), len(points)
    if schedule == "linear":
        counts = [patches - round((patches - last) * done / stages) for done in range(1, stages)]
    else:
        spared = delay(depth) if schedule == "delayed" and points[0] == 0 else None
        rates = _rates(keep, stages, spared) if isinstance(schedule, str) else schedule
        if len(rates) != stages - 1:
            wanted = f"{stages - 1} keep rates, one for each reduction point but the last of"
            raise ValueError(f"schedule={schedule!r}: expected {wanted} {', '.join(map(str, points))}")
        counts = [max(last, final_count(patches, rate)) for rate in rates]
    return dict(zip(points, [*counts, last], strict=True))


def delay(depth: int) -> float:
    """Return the ln(1 / keep) up to which a delayed schedule leaves block 0 alone in a tower of ``depth`` blocks.

    Found on validation images in towers of 9 and 12 blocks: 1/3 and 3/4; deeper towers weren't tried.
    """
    return max(0.0, min(0.75, (depth - 7) / 6))


def _rates(keep: float, stages: int, spared: float | None) -> tuple[float, ...]:
    """Return the keep rate after each stage but the last; up to a ln(1 / keep) of ``spared`` the first is 1."""
    if spared is None or stages == 1:
        return tuple(keep ** (done / stages) for done in range(1, stages))
    first = min(1.0, (keep * math.exp(spared)) ** SHARE)
    return tuple(first * (keep / first) ** (done / (stages - 1)) for done in range(stages - 1))


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What a reducer may know about the tower it works in."""

    embed_dim: int
    depth: int
    grid: tuple[int, int]  # rows and columns of patches at the tower's own image size
    query: str | None = "class token"  # which query pools, see ``Host.query``
    device: torch.device | str | None = None  # of a reducer's own weights, as is dtype
    dtype: torch.dtype | None = None


class PoolingBlock(Protocol):
    """What a method may ask of the block whose input it reduces; a ``HostBlock``."""

    def pooling_attention(self, tokens: Tokens) -> Tensor:
        """Return how much the query that pools attends to each patch token before this block, (B, n) float32."""


def limit(default: Any, allowed: str | Collection[str]) -> Any:
    """Declare a setting with its default, and the names or the interval, such as ``(0, 1]``, that it may be in."""
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class ReducerConfig:
    """Settings that every method shares; a method adds its own fields, those with limits by ``limit``.

    Attributes:
        keep: keep rate, the share of patch tokens left at the end, in (0, 1].
        reduce_at: reduction points, 0-based block indices, ascending; None for every block.
        schedule: how several points share the work: ``geometric`` keeps the same share at each,
            ``linear`` drops the same number at each, ``delayed`` is geometric but for a point at block 0, which keeps
            min(1, (keep exp(`delay`))^0.4). Or the keep rate after each point but the last, falling.
    """

    keep: float | None = limit(None, "(0, 1]")
    reduce_at: tuple[int, ...] | None = (3,)
    schedule: str | tuple[float, ...] = "geometric"

    instead_of_keep: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        # JSON lists and single numbers become tuples.
        object.__setattr__(self, "reduce_at", None if self.reduce_at is None else _points(self.reduce_at))
        object.__setattr__(self, "schedule", _schedule(self.schedule))
        flags = [name for name, kind in get_type_hints(type(self)).items() if kind is bool]
        if wrong := next((name for name in flags if not isinstance(getattr(self, name), bool)), None):
            raise ValueError(f"{wrong}={getattr(self, wrong)!r}: expected true or false")
        check_fields(self, **{each.name: each.metadata["allowed"] for each in fields(self) if each.metadata})
        names = ("keep", *self.instead_of_keep)
        rates = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) is not None]
        if len(rates) != 1:
            raise ValueError(f"expected exactly one of {' or '.join(names)}, got {', '.join(rates) or 'none of them'}")

    def points(self, depth: int) -> tuple[int, ...]:
        """Return the reduction points, ascending; raise ValueError if one is beyond ``depth``."""
        points = tuple(range(depth)) if self.reduce_at is None else self.reduce_at
        if points[-1] >= depth:
            raise ValueError(f"reduce_at={points[-1]}: this tower has blocks 0 to {depth - 1}")
        return points

    def other_rules(self, depth: int) -> tuple[dict[str, Any], ...]:
        """Return options, beside the defaults, that place reduction points well in some towers of this depth."""
        return ()

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON has them: a tuple would never equal the list read back."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def needs_query(self) -> bool:
        """Whether the method can't do without the attention of the query that pools, see ``Host.query``."""
        return False

    def predictor_block(self, depth: int) -> int | None:
        """Return the block before which a predictor scores; None for most methods."""
        return None


@dataclass(frozen=True, kw_only=True)
class StagedConfig(ReducerConfig):
    """Settings of methods with three stages.

    Attributes:
        reduce_at: as for all methods, but None for the quarters of the depth: blocks 3, 6 and 9 of 12.
    """

    reduce_at: tuple[int, ...] | None = None

    def points(self, depth: int) -> tuple[int, ...]:
        """Return the reduction points; by default the blocks nearest to one, two and three quarters of the depth."""
        if self.reduce_at is not None:
            return super().points(depth)
        return tuple(sorted({min((2 * depth * stage + 4) // 8, depth - 1) for stage in (1, 2, 3)}))


def _schedule(value: Any) -> str | tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        if value not in SCHEDULES:
            raise ValueError(f"schedule={value!r}: expected one of {', '.join(SCHEDULES)}")
        return str(value)
    numbers = all(isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate <= 1 for rate in value)
    if not numbers or list(value) != sorted(value, reverse=True):
        raise ValueError(f"schedule={value!r}: expected keep rates in (0, 1], none larger than the one before")
    return tuple(value)


def _points(value: Any) -> tuple[int, ...]:
    points = tuple(value) if isinstance(value, (list, tuple, range)) else (value,)
    if any(type(point) is not int or point < 0 for point in points):
        raise ValueError(f"reduce_at={value!r}: expected block indices, integers from 0")
    if not points or list(points) != sorted(set(points)):
        raise ValueError(f"reduce_at={value!r}: expected at least one index, ascending, once each")
    return points


class Reducer(nn.Module):
    """Shorten a token sequence at fixed points of the forward loop.

    A method names its settings class as ``Config`` and overrides hooks. It keeps nothing about the images in flight.
    """

    Config: ClassVar[type[ReducerConfig]] = ReducerConfig
    method: ClassVar[str] = ""
    by_default: ClassVar[bool] = True  # whether commands that are given no methods measure it
    in_block: ClassVar[bool] = False  # whether it reduces in the blocks of its points, behind the attention
    ordered: ClassVar[bool] = False  # whether the order of the sequence decides, too: alternating sets, first of a pair

    def __init__(self, config: ReducerConfig, host: HostSpec) -> None:
        """Check the settings against the tower; raise ValueError if it can't meet them."""
        super().__init__()
        if config.needs_query and host.query is None:
            able = [name for name in sorted(METHODS) if not METHODS[name].Config(keep=0.5).needs_query]
            method = f"{self.method!r}{' with these settings' if self.method in able else ''}"
            raise ValueError(
                f"method {method} needs the query that pools, and this tower has neither a class token nor an "
                f"attention pool; expected one of {', '.join(able)}"
            )
        self.config = config
        self.depth = host.depth
        self.points = config.points(host.depth)
        self.counts(host.grid[0] * host.grid[1])

    @property
    def first_block(self) -> int:
        """Index of the first block whose computation differs from the dense tower's."""
        return self.points[0]

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many of N >= 1 patch tokens are left after each reduction point."""
        assert self.config.keep is not None
        return token_counts(patches, self.config.keep, self.points, self.config.schedule, self.depth)

    def count_after(self, index: int, tokens: Tokens) -> int:
        """Return how many patch tokens must be left after block ``index``, a reduction point."""
        return self.counts(tokens.grid[0] * tokens.grid[1])[index]

    def needs_attention(self, index: int) -> bool:
        """Tell whether ``after_attention`` has something to do in block ``index``."""
        return self.in_block and index in self.points

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        """Return an additive bias on the logits, broadcastable to (B, H, T, T), or None."""
        return None

    def before_block(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tokens:
        """Reduce at the input of block ``index``; ``block`` is its ``HostBlock``."""
        return tokens

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Reduce between the attention and the MLP of block ``index``."""
        return tokens

    def extra_repr(self) -> str:
        """Show the settings in the printed form, by which checkpoints of training tell reducers apart."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self.config).items())


METHODS: dict[str, type[Reducer]] = {}
_listeners: list[Callable[[str], None]] = []
R = TypeVar("R", bound=type[Reducer])


def register_method(name: str) -> Callable[[R], R]:
    """Make a reducer known under ``name``, a plain lower-case word that no other has, or raise ValueError."""

    def register(cls: R) -> R:
        if not (name.isascii() and name.isalpha() and name.islower()):
            raise ValueError(f"method name {name!r}: expected lower-case letters only")
        if name in METHODS and METHODS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"method name {name!r} is taken by {METHODS[name].__qualname__}")
        cls.method = name
        METHODS[name] = cls
        for listener in _listeners:
            listener(name)
        return cls

    return register


def on_method(listener: Callable[[str], None]) -> None:
    """Call ``listener`` with the name of every method, known now or registered later."""
    for name in METHODS:
        listener(name)
    _listeners.append(listener)


def configure(method: str, options: dict[str, Any], depth: int) -> ReducerConfig:
    """Turn JSON-able options of ``method`` into its settings for a tower of ``depth`` blocks.

    Raises:
        ValueError: unknown method or option, or a value out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: {expected(method, METHODS)}")
    config = METHODS[method].Config
    names = [each.name for each in fields(config)]
    for option in options:
        if option not in names:
            raise ValueError(f"{method} has no option {option!r}: {expected(option, names)}")
    # Default reduction points that the tower doesn't have are left out.
    points = tuple(p for p in config.reduce_at or () if p < depth)
    return config(**({"reduce_at": points} if points else {}) | options)


def build_reducer(method: str, options: dict[str, Any], host: HostSpec) -> Reducer:
    """Build the reducer ``method``; raise ValueError as ``configure``, or for settings that the tower can't meet."""
    return METHODS[method](configure(method, options, host.depth), host)


class Pruner(Reducer):
    """A reducer that prunes before each of its reduction points; a method says by what."""

    @abstractmethod
    def importance(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tensor:
        """Score the patch tokens that enter ``block`` number ``index``, (B, n), higher = keep."""

    def before_block(self, index: int, tokens: Tokens, block: PoolingBlock) -> Tokens:
        """Prune to the scheduled count; with all tokens kept nothing is computed."""
        if index not in self.points or (count := self.count_after(index, tokens)) >= tokens.patch_count:
            return tokens
        return tokens.prune(index, self.importance(index, tokens, block), count)
