"""What follows ``hfds:``: a folder or a name of the Hugging Face hub, and which parts are meant."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from zoo.reducer import expected

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What follows ``#``, as in ``#image=img,test=validation``.

    Attributes:
        config: of the dataset, where it has several.
        image: column of images.
        label: column of classes.
        train: split that is train here; likewise val and test. One that is named leaves those that
            aren't empty.
    """

    config: str | None = None
    image: str | None = None
    label: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None

    @classmethod
    def parse(cls, text: str, what: str) -> "Choice":
        """Read ``KEY=VALUE,...``.

        Raises:
            ValueError: an unknown key, one without a value, or one that is there twice.
        """
        keys = [field.name for field in fields(cls)]
        told: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            if key not in keys:
                raise ValueError(f"{what}: {part!r} after '#': {expected(key, keys)}, as KEY=VALUE")
            if not value or key in told:
                raise ValueError(f"{what}: {part!r} after '#': expected one value for {key}")
            told[key] = value
        return cls(**told)

    def __str__(self) -> str:
        """Return it as it is written, "" where nothing is chosen."""
        told = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]
        told = [part for part in told if not part.endswith("=None")]
        return "#" + ",".join(told) if told else ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a dataset is.

    Attributes:
        folder: that holds it, absolute; None on the hub.
        name: ``owner/name`` there, or the folder's own name.
        what: it is, for messages.
        choice: of its parts.
    """

    folder: Path | None
    name: str
    what: str
    choice: Choice

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read a folder's path or ``owner/name``, then perhaps ``#`` and a choice.

        Raises:
            FileNotFoundError: neither a folder nor a name that the hub could have.
            NotADirectoryError: a file.
            ValueError: see ``Choice.parse``.
        """
        where, sharp, told = text.rpartition("#")
        if not sharp or Path(text).expanduser().is_dir():  # "#" may be part of its name
            where, sharp = text, ""
        choice = Choice.parse(told, f"hfds:{text}") if sharp else Choice()
        folder = Path(where).expanduser().absolute()
        if folder.is_dir():
            what = f"folder {str(folder)!r}"
            return cls(folder=folder, name=folder.resolve().name, what=what, choice=choice)
        if folder.exists():
            raise NotADirectoryError(f"hfds:{where} is a file; give the folder it lies in")
        if not HUB_NAME.fullmatch(where):
            raise FileNotFoundError(
                f"hfds:{text} is neither a folder, {str(folder)!r} does not exist, nor the name of "
                "a dataset of the Hugging Face hub, owner/name, such as uoft-cs/cifar10"
            )
        return cls(folder=None, name=where, what=f"dataset {where!r} of the hub", choice=choice)
