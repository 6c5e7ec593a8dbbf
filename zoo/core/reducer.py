"""The protocol of a token reduction method, its settings, and the registered methods."""

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from timm.layers import register_notrace_module
from torch import Tensor, nn

from zoo.core.attention import Attended
from zoo.core.messages import expected
from zoo.core.tokens import Tokens

SCHEDULES = ("geometric", "linear")


def final_count(patches: int, keep: float) -> int:
    """Return round(keep * N), at least 1: the patch tokens left at the end."""
    return max(1, round(keep * patches))


def spread(patches: int, keep: float, points: tuple[int, ...], schedule: str | tuple[float, ...]) -> dict[int, int]:
    """Return the patch tokens left after each reduction point, from N to ``final_count``.

    Raises:
        ValueError: ``schedule`` has rates for more or fewer points.
    """
    last, stages = final_count(patches, keep), len(points)
    counts: dict[int, int] = {}
    if not isinstance(schedule, str):
        if len(schedule) != stages - 1:
            raise ValueError(
                f"schedule={schedule!r}: expected {stages - 1} keep rates, one for each reduction point but the last "
                f"of {', '.join(map(str, points))}"
            )
        rates = zip(points, schedule, strict=False)
        return {point: max(last, final_count(patches, rate)) for point, rate in rates} | {points[-1]: last}
    for done, point in enumerate(points, start=1):
        if schedule == "linear":
            counts[point] = patches - round((patches - last) * done / stages)
        else:
            counts[point] = max(last, final_count(patches, keep ** (done / stages)))
    return counts | {points[-1]: last}


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What a reducer may know about the tower it works in.

    ``grid`` is (rows, columns) of patches at the tower's own image size; ``query`` which query pools, ``class token``
    or ``probe``, None where none does; ``device`` and ``dtype`` are those of a reducer's own weights.
    """

    embed_dim: int
    depth: int
    grid: tuple[int, int]
    query: str | None = "class token"
    device: Any = None
    dtype: Any = None


@dataclass(frozen=True, kw_only=True)
class ReducerConfig:
    """Settings that every method shares; a method adds its own fields.

    Attributes:
        keep: keep rate, the share of patch tokens left at the end, in (0, 1].
        reduce_at: reduction points, 0-based block indices, ascending; None for every block.
        schedule: how several points share the work: ``geometric`` keeps the same share at each,
            ``linear`` drops the same number at each. Or the keep rate after each point but the last, falling.
    """

    keep: float | None = None
    reduce_at: tuple[int, ...] | None = (3,)
    schedule: str | tuple[float, ...] = "geometric"

    instead_of_keep: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.reduce_at is not None:  # JSON lists and single numbers become tuples
            object.__setattr__(self, "reduce_at", _points(self.reduce_at))
        if isinstance(self.schedule, (list, tuple)):
            object.__setattr__(self, "schedule", _rates(self.schedule))
        else:
            self.choose("schedule", SCHEDULES)
        fields = ("keep", *self.instead_of_keep)
        rates = [f"{f}={getattr(self, f)!r}" for f in fields if getattr(self, f) is not None]
        if len(rates) != 1:
            values = ", ".join(rates) or "none of them"
            raise ValueError(f"expected exactly one of {' or '.join(fields)}, got {values}")
        if self.keep is not None:
            self.within("keep", 0.0, 1.0)

    def points(self, depth: int) -> tuple[int, ...]:
        """Return the reduction points, ascending; raise ValueError if one is beyond ``depth``."""
        points = tuple(range(depth)) if self.reduce_at is None else self.reduce_at
        if points[-1] >= depth:
            raise ValueError(f"reduce_at={points[-1]}: this tower has blocks 0 to {depth - 1}")
        return points

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON has them: a tuple would never equal the list read back."""
        facts: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return facts

    @property
    def action(self) -> str:
        """What a predictor ranks patches for, of ``zoo.ranking.golden.ACTIONS``."""
        return "remove"

    @property
    def needs_query(self) -> bool:
        """Whether the method can't do without the attention of the query that pools, see ``Host.query``."""
        return False

    def predictor_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the blocks before which a predictor scores, ascending; none for most methods."""
        return ()

    def choose(self, field: str, allowed: tuple[str, ...]) -> None:
        """Raise ValueError unless the value of ``field`` is one of ``allowed``."""
        value = getattr(self, field)
        if value not in allowed:
            raise ValueError(f"{field}={value!r}: expected one of {', '.join(allowed)}")

    def within(self, field: str, low: float, high: float) -> None:
        """Raise ValueError unless the value of ``field`` is a number in (low, high]."""
        value = getattr(self, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low < value <= high:
            raise ValueError(f"{field}={value!r}: expected a number in ({low:g}, {high:g}]")

    def whole(self, field: str, low: int) -> None:
        """Raise ValueError unless the value of ``field`` is an integer from ``low``."""
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{field}={value!r}: expected an integer from {low}")

    def nonnegative(self, field: str) -> None:
        """Raise ValueError unless the value of ``field`` is a finite number from 0."""
        value = getattr(self, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf"):
            raise ValueError(f"{field}={value!r}: expected a number from 0")

    def switch(self, field: str) -> None:
        """Raise ValueError unless the value of ``field`` is true or false."""
        if not isinstance(getattr(self, field), bool):
            raise ValueError(f"{field}={getattr(self, field)!r}: expected true or false")


def _rates(value: Any) -> tuple[float, ...]:
    """Check the keep rates of a schedule."""
    rates = tuple(value)
    numbers = all(isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate <= 1 for rate in rates)
    if not numbers or list(rates) != sorted(rates, reverse=True):
        raise ValueError(f"schedule={value!r}: expected keep rates in (0, 1], none larger than the one before")
    return rates


def _points(value: Any) -> tuple[int, ...]:
    """Turn one block index or several into a tuple."""
    points = tuple(value) if isinstance(value, (list, tuple, range)) else (value,)
    if any(isinstance(p, bool) or not isinstance(p, int) or p < 0 for p in points):
        raise ValueError(f"reduce_at={value!r}: expected block indices, integers from 0")
    if not points or list(points) != sorted(set(points)):
        raise ValueError(f"reduce_at={value!r}: expected at least one index, ascending, once each")
    return points


@register_notrace_module
class Reducer(nn.Module):
    """Shorten a token sequence at fixed points of the forward loop.

    A method subclasses this, names its settings class as ``Config`` and overrides one or both
    hooks. A reducer holds settings and weights, never anything about the images in flight.
    """

    Config: ClassVar[type[ReducerConfig]] = ReducerConfig
    method: ClassVar[str] = ""
    by_default: ClassVar[bool] = True  # whether commands that are given no methods measure it

    def __init__(self, config: ReducerConfig, host: HostSpec) -> None:
        """Check the settings against the tower; raise ValueError if it can't meet them."""
        super().__init__()
        if config.needs_query and host.query is None:
            able = [name for name in sorted(METHODS) if not METHODS[name].Config(keep=0.5).needs_query]
            settings = " with these settings" if self.method in able else ""
            raise ValueError(
                f"method {self.method!r}{settings} goes by the attention of the query that pools, and this tower has "
                f"neither a class token nor an attention pool; expected one of {', '.join(able)}"
            )
        self.config = config
        self.points = config.points(host.depth)
        self.counts(host.grid[0] * host.grid[1])

    @property
    def first_block(self) -> int:
        """Index of the first block whose computation differs from the dense tower's."""
        return self.points[0]

    def counts(self, patches: int) -> dict[int, int]:
        """Return how many of N >= 1 patch tokens are left after each reduction point."""
        assert self.config.keep is not None
        return spread(patches, self.config.keep, self.points, self.config.schedule)

    def count_after(self, index: int, tokens: Tokens) -> int:
        """Return how many patch tokens must be left after block ``index``, a reduction point."""
        return self.counts(tokens.grid[0] * tokens.grid[1])[index]

    def needs_attention(self, index: int) -> bool:
        """Tell whether ``after_attention`` has something to do in block ``index``."""
        return False

    def attention_bias(self, tokens: Tokens) -> Tensor | None:
        """Return an additive bias on the logits, broadcastable to (B, H, T, T), or None."""
        return None

    def before_block(self, index: int, tokens: Tokens, block: Any) -> Tokens:
        """Reduce at the input of block ``index``; ``block`` is its ``HostBlock``."""
        return tokens

    def after_attention(self, index: int, tokens: Tokens, attended: Attended) -> Tokens:
        """Reduce between the attention and the MLP of block ``index``.

        ``attended.pooling`` gives the query that pools, for sure if the settings say ``needs_query``.
        """
        return tokens

    def extra_repr(self) -> str:
        """Show the settings in the module's printed form."""
        return ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(self.config).items())


METHODS: dict[str, type[Reducer]] = {}
_listeners: list[Callable[[str], None]] = []
R = TypeVar("R", bound=type[Reducer])


def register_method(name: str) -> Callable[[R], R]:
    """Make a reducer known under ``name``, the word used in model names.

    Raises:
        ValueError: the name isn't a plain lower-case word, or another class has it.
    """

    def register(cls: R) -> R:
        if not (name.isascii() and name.isalpha() and name.islower()):
            raise ValueError(f"method name {name!r}: expected lower-case letters only")
        if name in METHODS and METHODS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"method name {name!r} is taken by {METHODS[name].__qualname__}")
        cls.method = name
        METHODS[name] = register_notrace_module(cls)
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
        ValueError: unknown method or option (with the nearest known one), or a value out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: {expected(method, METHODS)}")
    config = METHODS[method].Config
    fields = [f.name for f in dataclasses.fields(config)]
    for option in options:
        if option not in fields:
            raise ValueError(f"{method} has no option {option!r}: {expected(option, fields)}")
    # Default reduction points that the tower doesn't have are left out.
    points = tuple(p for p in config.reduce_at or () if p < depth)
    return config(**({"reduce_at": points} if points else {}) | options)


def build_reducer(method: str, options: dict[str, Any], host: HostSpec) -> Reducer:
    """Build the reducer ``method`` from JSON-able options.

    Raises:
        ValueError: what ``configure`` refuses, or settings that the tower can't meet.
    """
    config = configure(method, options, host.depth)
    return METHODS[method](config, host)


class Pruner(Reducer):
    """A reducer that prunes before each of its reduction points; a method says by what."""

    @abstractmethod
    def importance(self, index: int, tokens: Tokens, block: Any) -> Tensor:
        """Score the patch tokens that enter ``block`` number ``index``, (B, n), higher = keep.

        ``tokens.importance`` holds the scores that an earlier reduction point gave those still
        here, None at the first.
        """

    def before_block(self, index: int, tokens: Tokens, block: Any) -> Tokens:
        """Prune to the scheduled count; with all tokens kept nothing is computed."""
        if index not in self.points:
            return tokens
        count = self.count_after(index, tokens)
        if count >= tokens.patch_count:
            return tokens
        return tokens.prune(index, self.importance(index, tokens, block), count)
