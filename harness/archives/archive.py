"""One file that a source ships: where to get it, how to know it, and what it holds."""

from dataclasses import dataclass
from pathlib import Path

PACKED = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file of the source: an archive, or a plain file that is used as it is.

    Attributes:
        file: its name, see ``find``.
        holds: path that is there once it is unpacked, relative to the dataset's folder; of a plain
            file its own name. Several archives may hold the same: any of them will do.
        url: where it can be downloaded; None where there is a licence to agree to, or no lasting
            address.
        page: where a person gets it.
        checksums: ``md5:...`` or ``sha256:...`` of the versions that are known; () where nobody
            publishes one.
        strip: folder in the archive whose content is taken, and nothing else of it.
        into: folder that it is unpacked in, relative to the dataset's.
        optional: the dataset is of use without it.
        nested: its members are tars, each to be unpacked in a folder of its name.
    """

    file: str
    holds: str
    page: str
    url: str | None = None
    checksums: tuple[str, ...] = ()
    strip: str = ""
    into: str = ""
    nested: bool = False
    optional: bool = False

    @property
    def packed(self) -> bool:
        """Whether it has to be unpacked."""
        return self.file.endswith(PACKED)

    def find(self, folder: Path) -> Path | None:
        """Look for it in the dataset's folder; beside that, too, if it holds a folder of its own.

        Others have names like images.tar.gz, which beside the folder may be of another dataset.
        """
        places = [folder / self.file, *([folder.parent / self.file] if self.strip else [])]
        return next((place for place in places if place.is_file()), None)
