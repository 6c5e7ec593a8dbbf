"""Open what the Hugging Face `datasets` library can: its cache of the hub, and folders.

Nothing here runs or unpickles what a dataset brings. Of the library's ways to read files only those
are used that yield tables with columns for images and classes. It may use the network for a dataset
of the hub if it is told to, and not otherwise.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, metadata_load

from harness.datasets.huggingface import Place

OLDEST = 5  # release of the library; those before 4 ran scripts
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
READERS = ("arrow", "cache", "imagefolder", "parquet")
SEVERAL = ("Config name is missing", "specify which configuration")  # in its messages
INSTALL = f"python -m pip install 'datasets>={OLDEST}'"


def roots(place: Place) -> tuple[str, ...]:
    """Return folders, as real paths, in which images may be that a table only has paths of."""
    own = () if place.folder is None else (str(place.folder),)
    caches = (constants.HF_HUB_CACHE, str(_library().config.HF_DATASETS_CACHE))
    saved = place.folder is not None and _is_saved(place.folder)  # its paths are the writer's
    return tuple(os.path.realpath(root) for root in (*own, *(() if saved else caches)))


def load(place: Place, *, download: bool = False) -> dict[str, Any]:
    """Open a dataset's splits, by name; "" is that of one that has none.

    Args:
        place: where it is.
        download: get what is missing from the hub.

    Returns:
        a ``datasets.Dataset`` for each.

    Raises:
        FileNotFoundError: a dataset of the hub that isn't in the cache; tells how to get it.
        ValueError: the library is missing or too old, or can't read what is there.
        OSError: a download failed.
    """
    library = _library()
    with _quiet(library, offline=not download or place.folder is not None):
        try:
            found = _opened(library, place)
        except (ConnectionError, FileNotFoundError) as error:
            if place.folder is None and not download:
                raise FileNotFoundError(_missing(library, place)) from error
            text = _text(error)
            hint = "; HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE and download else ""
            raise OSError(f"{place.what} can't be opened: {text}{hint}") from error
        except OSError:
            raise
        except Exception as error:  # the library raises whatever it stumbles over
            text = _text(error)
            mend = "" if download or place.folder else f"; {_way(place)}"
            hint = "; name it as in #config=CONFIG" if any(s in text for s in SEVERAL) else ""
            raise ValueError(f"{place.what} can't be read: {text}{hint}{mend}") from error
    return found


def _opened(library: Any, place: Place) -> dict[str, Any]:
    """Let the library open it."""
    if place.folder is not None and _is_saved(place.folder):
        if place.choice.config is not None:
            raise ValueError(
                f"config={place.choice.config}: what save_to_disk wrote has no configs"
            )
        found = library.load_from_disk(str(place.folder))
    else:
        if place.folder is not None:
            _require_files(place.folder)
        path = place.name if place.folder is None else str(place.folder)
        builder = library.load_dataset_builder(path, place.choice.config)
        *_, reader = type(builder).__module__.split(".")
        if reader not in READERS or not type(builder).__module__.startswith("datasets.packaged_"):
            raise ValueError(
                f"its files are read by {reader!r}, which gives no images with classes; expected "
                f"{', '.join(READERS)}"
            )
        builder.download_and_prepare()
        found = builder.as_dataset()
    if isinstance(found, library.Dataset):
        return {str(found.split or ""): found}
    return {str(name): split for name, split in found.items()}


def _is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in SAVED)


def _require_files(folder: Path) -> None:
    """Refuse a folder whose own words would send the library elsewhere."""
    card, own = folder / "README.md", folder / ".huggingface.yaml"
    told = str((metadata_load(card) or {}).get("configs", "")) if card.is_file() else ""
    told += own.read_text(encoding="utf-8") if own.is_file() else ""
    if "://" in told:
        raise ValueError("its README.md or .huggingface.yaml names files by URL; put them there")


def _text(error: BaseException) -> str:
    """Put what the library says, and why, into one line."""
    told = [error, error.__cause__] if error.__cause__ else [error]
    return ": ".join(" ".join(str(one).split()) for one in told)


def _missing(library: Any, place: Place) -> str:
    cache = str(library.config.HF_DATASETS_CACHE)
    return f"{place.what} is not in the cache of `datasets`, {cache!r}; {_way(place)}"


def _way(place: Place) -> str:
    """Say how to get a dataset of the hub."""
    config = f", {place.choice.config!r}" if place.choice.config else ""
    return (
        "--download gets it; so does, where there is a network and HF_HOME is the same, `python -c "
        f'"import datasets; datasets.load_dataset({place.name!r}{config})"`'
    )


def _library() -> Any:
    """Import the library.

    Raises:
        ValueError: it isn't there, or too old.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"hfds: needs the package `datasets`, which is missing; `{INSTALL}`")
    library = importlib.import_module("datasets")
    if int(library.__version__.partition(".")[0]) < OLDEST:
        raise ValueError(
            f"hfds: needs `datasets` {OLDEST} or newer, here is {library.__version__}; `{INSTALL}`"
        )
    return library


@contextmanager
def _quiet(library: Any, *, offline: bool) -> Iterator[None]:
    """Keep the library off the network, its warnings to itself and its bars to terminals."""
    log, bars = library.utils.logging, library.utils.are_progress_bars_disabled()
    before = (log.get_verbosity(), library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    log.set_verbosity(log.CRITICAL)
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    if offline:
        library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        verbosity, library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        log.set_verbosity(verbosity)
        if not bars:
            library.enable_progress_bars()
