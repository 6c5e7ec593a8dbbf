"""Files of schedules: reduction points and the share of patch tokens after each, found by measurement."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.core.files import strict_json, write_whole
from zoo.core.messages import wanting
from zoo.core.reducer import ReducerConfig, spread

FORMAT = 1  # of a file
OPTIONS = ("reduce_at", "schedule", "keep")  # what a method takes of a file


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """A schedule with its provenance, as JSON.

    Attributes:
        reduce_at: reduction points.
        schedule: keep rate after each but the last.
        keep: keep rate after the last.
        model: dense name of the tower that it was searched on.
        tag: weight tag.
        weights: its ``blocks_fingerprint``.
        method: reduction method.
        options: the method's settings apart from these three, as JSON values.
        cost: what was to be met, ``gflops`` or ``time``; as which model, ``asked`` and ``reached``.
        found: whether the search found it; else it is the method's default at that cost.
        datasets: name, revision, images, and 1 - cosine on held-out ones of the default (``before``), of the schedule
            (``after``) and the mean difference with its 95 % interval, of each.
        candidates: schedules that were tried.
        seconds: of the search.
        version: of this package.
        commit: of the code.
    """

    reduce_at: tuple[int, ...]
    schedule: tuple[float, ...]
    keep: float
    model: str
    tag: str
    weights: str
    method: str
    options: dict[str, Any]
    cost: dict[str, Any]
    found: bool
    datasets: list[dict[str, Any]]
    candidates: int
    seconds: float
    version: str
    commit: str | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> "ScheduleFile":
        """Read and check a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a schedule, or one of another format or with numbers out of range.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no schedule at {str(path)!r}: the file does not exist")
        try:
            facts = strict_json(path.read_bytes())
            if not isinstance(facts, dict) or not set(OPTIONS) <= set(facts):
                raise ValueError(f"it lacks {', '.join(OPTIONS)}")
            if facts.get("format") != FORMAT:
                raise ValueError(f"it has format {facts.get('format')!r}, this version reads {FORMAT}")
            config = ReducerConfig(**{name: facts[name] for name in OPTIONS})
            facts |= {name: getattr(config, name) for name in OPTIONS}
            spread(1, facts["keep"], facts["reduce_at"], facts["schedule"])
            return cls(**facts)
        except (TypeError, ValueError) as error:
            raise wanting(ValueError(f"{str(path)!r} holds no schedule: {error}"), "schedule") from error

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_schedule(path: str | Path) -> dict[str, Any]:
    """Read the options ``reduce_at``, ``schedule`` and ``keep`` of a file of a schedule.

    They are shares of the patch tokens, so that any tower with these blocks takes them, on any grid; whether they are
    good for it wasn't measured. ``ScheduleFile`` says for which one they were found.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a schedule.
    """
    file = ScheduleFile.read(Path(path))
    return {name: getattr(file, name) for name in OPTIONS}
