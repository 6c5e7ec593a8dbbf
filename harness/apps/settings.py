"""What applications can be told. Without torch and numpy, so that a command line can show the fields at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.workers import require_actors
from harness.measure.settings import Plan
from zoo.core.recipes import GoldenConfig
from zoo.core.settings import PRECISIONS, check_fields, expected

CONTROLS = ("random", "golden")  # what methods are compared with: nothing to run
TIMM_FORMAT, SENTENCE = "timm", "sentence-transformers"
FORMATS = (TIMM_FORMAT, SENTENCE)  # of a published folder


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """What to choose from, and how."""

    methods: tuple[str, ...] = ()  # registered ones; none for those that are measured by default
    dtypes: tuple[str, ...] = ()  # none for float32 and the fastest of the device
    search: int = 64  # pictures to search by
    held_out: int = 256  # other pictures, that decide
    batch: int = Plan.match_batch  # images per call, where time is measured
    rounds: int = 9  # calls of the chosen setup and of dense in the end, at least
    seconds: float = 5.0  # that these go on for
    seed: int = 0  # of the split of pictures and of bootstraps
    device: str = "cpu"

    def __post_init__(self) -> None:
        from harness.records.statistics import LEAST_ROUNDS
        from zoo.core.reducer import METHODS

        allowed = sorted(METHODS.keys() - CONTROLS)
        for method in self.methods:
            if method not in allowed:
                control = " is a control to compare methods with" if method in CONTROLS else ""
                raise ValueError(f"--methods {method!r}{control}: {expected(method, allowed)}")
        ranges = {"search": "[8, inf)", "held_out": "[20, inf)", "batch": "[1, inf)", "seconds": "[0, inf)"}
        check_fields(self, dtypes=PRECISIONS, rounds=f"[{LEAST_ROUNDS}, inf)", **ranges)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a model is served."""

    replicas: int = 1  # Ray actors with the model each
    threads: int | None = None  # of each replica; None: this machine's cores shared among them
    batch: int = 16  # pictures and texts that the model takes at once
    wait_ms: float = 5.0  # that a batch waits for more
    queue: int = 128  # requests that wait for a replica; more get 503
    host: str = "127.0.0.1"
    port: int = 8000
    route: str = "/"  # what paths begin with
    device: str = "cpu"
    random_weights: bool = False

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("replicas", "threads", "batch", "queue"), "[1, inf)")
        check_fields(self, **counts, wait_ms="[0, inf)", port="[1, 65535]")
        if not self.route.startswith("/"):
            raise ValueError(f"--route {self.route!r}: expected a path that starts with '/'")
        require_actors("--replicas", self.replicas, self.device)

    @property
    def cores(self) -> int:
        """Threads of each replica."""
        from harness.records.times import cores

        return self.threads or max(1, cores() // self.replicas)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Configure what is shown beside an image."""

    keeps: tuple[float, ...] = (0.6,)  # in (0, 1); a column for each of what the predictor, or a golden ranking, keeps
    left: tuple[str, ...] = ()  # methods or ``golden``: what each leaves, without rankings
    golden: GoldenConfig = field(default_factory=GoldenConfig)  # of a score that needs no classes
    scale: float = 1.0  # of the figure, 1 for about 2000 pixels of width

    def __post_init__(self) -> None:
        from harness.records.record import GOLDEN
        from zoo.core.reducer import METHODS

        if not self.keeps or len(set(self.keeps)) < len(self.keeps) or not all(0 < keep < 1 for keep in self.keeps):
            raise ValueError(f"--keeps {self.keeps}: expected fractions in (0, 1), such as 0.6, each once")
        for name in self.left:
            if name not in (known := [*sorted(METHODS), GOLDEN]):
                raise ValueError(f"--left {name!r}: {expected(name, known)}")
        check_fields(self, scale="[0.25, 8]")


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """Say which rows are checked, or with ``update`` written anew; None takes all of a kind."""

    files: Sequence[Path] = ()  # expectations; none for the one that ships
    models: Sequence[str] | None = None  # dense names
    methods: Sequence[str] | None = None
    keeps: Sequence[float] | None = None
    datasets: Sequence[str] | None = None
    device: str | None = None  # None for the expectation's
    rounds: int = 6
    no_latency: bool = False
    update: bool = False

    def __post_init__(self) -> None:
        from harness.records.statistics import LEAST_ROUNDS

        check_fields(self, rounds=f"[{LEAST_ROUNDS}, inf)")

    @property
    def narrowing(self) -> str:
        """Flags that take some of the rows."""
        names = {"model": self.models, "methods": self.methods, "keeps": self.keeps, "dataset": self.datasets}
        return " ".join(f"--{name}" for name, values in names.items() if values)
