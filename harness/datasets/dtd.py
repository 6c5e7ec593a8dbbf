"""Describable Textures: what people call textures."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
SPLIT = "split_zhou_DescribableTextures.json"


class DescribableTextures(ZhouDataset):
    """47 words for textures, in CoOp's own split."""

    name = "dtd"
    title = "Describable Textures Dataset"
    license = "research only"
    source = "Visual Geometry Group, Oxford, 2014 (r1.0.1)"
    homepage = HOME
    citation = (
        "M. Cimpoi, S. Maji, I. Kokkinos, S. Mohamed, A. Vedaldi, Describing Textures in the "
        "Wild, CVPR 2014"
    )
    templates = ("{} texture.",)
    folder = "dtd"
    images = "images"
    split_file = SPLIT
    class_count = 47
    counts = counted(train=2820, val=1128, test=1692)
    archives = (
        Archive(
            file="dtd-r1.0.1.tar.gz",
            holds="images",
            page=HOME,
            url=f"{HOME}download/dtd-r1.0.1.tar.gz",
            checksums=("md5:fff73e5086ae6bdbea199a49dfb8a4c1",),
            strip="dtd",
        ),
        split_archive(SPLIT, "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    )
