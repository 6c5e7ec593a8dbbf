"""A dataset from a split file of CoOp, such as split_zhou_OxfordPets.json, and its images."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from harness.datasets.base import SPLITS, Dataset, Split, SplitName
from harness.datasets.captions import slug
from harness.datasets.images import ImageList, require_inside

PREFIX = "coop:"
SHOWN = 6  # folders in a message


class CoopSplit(Dataset):
    """The images that a split file of CoOp lists.

    They lie beside the file, or in one folder beside it, which is found by looking. The names of
    everything are made from the file's own name, so they are the same on every machine.

    Args:
        file: the split file.

    Raises:
        FileNotFoundError: no such file, or no folder holds the first images.
        ValueError: not a split file, or one that contradicts itself or leaves its folder.
    """

    license = "see the dataset's own"
    source = "split file of CoOp (Zhou et al., IJCV 2022)"
    files = ()
    build_command = "none: it is made from a split file"
    templates = ("a photo of a {}.",)

    def __init__(self, file: Path) -> None:
        self.file = file.expanduser().absolute()
        what = f"split file {str(self.file)!r}"
        self._told = read_split_file(self.file)
        self.root = _root(self.file.parent, self._told.entries, what)
        require_inside(self.root, self._told.paths, what)
        short = self.file.stem.removeprefix("split_zhou_")
        self.name = f"coop-{slug(short, what)}"
        self.title = f"{short}, split by CoOp"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the file, underscores as spaces, in the order of its labels."""
        return self._told.classes

    def _revision(self) -> str:
        """First 12 hex digits of the split file's sha256; the images aren't read."""
        return self._told.digest[:12]

    @property
    def asked_as(self) -> str:
        """``coop:`` and the path of the file."""
        return f"{PREFIX}{self.file}"

    def differences(self) -> list[str]:
        """Say which images are missing or empty; none is opened."""
        return [line for name in SPLITS for line in self._images(name).differences()]

    def _images(self, name: SplitName) -> ImageList:
        prefix = f"coop/{self.file.stem}"
        return self._told.images(name, self.root, prefix=prefix, dataset=self.name)

    def _split(self, name: SplitName) -> Split:
        return self._images(name).split()


def _root(folder: Path, entries: Mapping[SplitName, list[Entry]], what: str) -> Path:
    """Find the folder that paths are relative to: the file's own or one directly in it."""
    firsts = [some[0].path for some in entries.values() if some]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())

    def there(root: Path) -> int:
        """Count the first images up to one that is missing."""
        return len(list(takewhile(lambda path: (root / path).is_file(), firsts)))

    counts = {root: there(root) for root in (folder, *inner)}
    if counts[folder] == len(firsts):
        return folder
    fitting = [root.name for root in inner if counts[root] == len(firsts)]
    if len(fitting) > 1:
        raise ValueError(
            f"{what}: the first images are in each of the folders {_listed(fitting)}; leave one"
        )
    if not fitting:
        raise FileNotFoundError(
            f"{what}: image '{firsts[max(counts.values())]}' is neither beside it, in "
            f"{str(folder)!r}, nor in a folder there (tried: "
            f"{_listed([root.name for root in inner]) or 'there is none'})"
        )
    return folder / fitting[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
