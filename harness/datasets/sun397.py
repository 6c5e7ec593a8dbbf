"""SUN397: scenes."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://vision.princeton.edu/projects/2010/SUN/"
SPLIT = "split_zhou_SUN397.json"


class SUN397(ZhouDataset):
    """397 scenes, in the first of its official partitions."""

    name = "sun397"
    title = "SUN397, scenes"
    license = "none stated; research only"
    source = "Princeton, 2010"
    homepage = HOME
    citation = (
        "J. Xiao, J. Hays, K. A. Ehinger, A. Oliva, A. Torralba, SUN Database: Large-scale "
        "Scene Recognition from Abbey to Zoo, CVPR 2010"
    )
    templates = ("a photo of a {}.",)
    folder = "sun397"
    images = "SUN397"
    split_file = SPLIT
    class_count = 397
    counts = counted(train=15_880, val=3970, test=19_850)
    archives = (
        Archive(
            file="SUN397.tar.gz",
            holds="SUN397",
            page=HOME,
            url=f"{HOME}SUN397.tar.gz",
            checksums=("md5:8ca2778205c41d23104230ba66911c7a",),
        ),
        split_archive(SPLIT, "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
    )
