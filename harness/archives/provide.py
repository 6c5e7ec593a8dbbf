"""Have what a dataset needs: it is there, or in an archive that is there, or can be downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.archives.lock import alone_in
from harness.datasets.archives import Archive, download, require_sum, unpack
from harness.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Puts into a dataset's folder what is needed.

    Attributes:
        dataset: name of the dataset.
        folder: of the dataset.
        archives: that the source ships.
        may_download: whether to get what is missing.
        progress: where to show it.
    """

    dataset: str
    folder: Path
    archives: Sequence[Archive]
    may_download: bool = False
    progress: Progress = field(default_factory=Progress)

    def provide(self) -> None:
        """Have everything that the archives hold.

        Raises:
            FileNotFoundError: something is missing; the message says where it was looked for and
                what to do.
            ValueError, OSError: see ``unpack`` and ``download``.
        """
        optional = {archive.holds for archive in self.archives if archive.optional}
        missing = [path for path in needed(self.archives) if not self._have(path)]
        if missing := [path for path in missing if path not in optional]:
            raise FileNotFoundError(self._missing(missing))

    def _have(self, path: str) -> bool:
        """Have one path, out of any archive that holds it."""
        if (self.folder / path).exists():
            return True
        holding = [archive for archive in self.archives if archive.holds == path]
        for archive in holding:
            if self._found(archive):
                return True
        if self.may_download:
            for archive in holding:
                if archive.url is not None:
                    self._download(archive)
                    return self._found(archive)
        return False

    def _found(self, archive: Archive) -> bool:
        """Unpack an archive, if it is there or in another one that is."""
        inside = any(other.holds == archive.file for other in self.archives)
        if archive.packed and inside and archive.find(self.folder) is None:
            self._have(archive.file)
        if (file := archive.find(self.folder)) is None:
            return False
        with alone_in(self.folder):
            if not (self.folder / archive.holds).exists() or not archive.packed:
                self._take(archive, file)
        return (self.folder / archive.holds).exists()

    def _take(self, archive: Archive, file: Path) -> None:
        """Check a file and unpack it."""
        size = file.stat().st_size
        with self.progress.bytes(f"checking {file.name}", size) as update:
            require_sum(archive, file, update)
        if archive.packed:
            with self.progress.bytes(f"unpacking {file.name}", size) as update:
                unpack(archive, file, self.folder, update)

    def _download(self, archive: Archive) -> None:
        with (
            alone_in(self.folder),
            self.progress.bytes(f"downloading {archive.file}") as update,
        ):
            if archive.find(self.folder) is None:  # else another process got it meanwhile
                download(archive, self.folder / archive.file, update)

    def _missing(self, paths: Sequence[str]) -> str:
        """Say what is missing and how to mend it."""
        lines = [f"dataset {self.dataset!r} isn't complete in {str(self.folder)!r}:"]
        for path in paths:
            holding = self._holding(path)
            files = " or ".join(dict.fromkeys(repr(archive.file) for archive in holding))
            pages = " or ".join(dict.fromkeys(archive.page for archive in holding))
            by_hand = all(archive.url is None for archive in holding)
            how = "by hand only" if by_hand else "by --download, or by hand"
            out_of = "" if files == repr(path) else f", which is in {files}"
            lines.append(f"  {path!r} is missing{out_of}; get that {how}, from {pages}")
        lines.append(
            f"Put files into {str(self.folder)!r} as they are; archives are unpacked there."
        )
        return "\n".join(lines)

    def _holding(self, path: str) -> list[Archive]:
        """Return the archives that hold a path, and those that hold these."""
        direct = [archive for archive in self.archives if archive.holds == path]
        return [a for d in direct for a in (d, *(self._holding(d.file) if d.packed else []))]


def needed(archives: Sequence[Archive]) -> list[str]:
    """List the paths that archives hold, but for those that are archives themselves."""
    packed = {archive.file for archive in archives if archive.packed}
    return [path for path in dict.fromkeys(a.holds for a in archives) if path not in packed]
