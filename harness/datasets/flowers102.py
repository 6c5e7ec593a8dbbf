"""Oxford Flowers 102: flowers common in the United Kingdom."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
SPLIT = "split_zhou_OxfordFlowers.json"


class Flowers102(ZhouDataset):
    """102 kinds of flowers, in CoOp's own split."""

    name = "flowers102"
    title = "Oxford Flowers 102"
    license = "none stated"
    source = "Visual Geometry Group, Oxford, 2008"
    homepage = HOME
    citation = (
        "M.-E. Nilsback, A. Zisserman, Automated Flower Classification over a Large Number of"
        " Classes, ICVGIP 2008"
    )
    templates = ("a photo of a {}, a type of flower.",)
    folder = "oxford_flowers"
    images = "jpg"
    split_file = SPLIT
    class_count = 102
    counts = counted(train=4093, val=1633, test=2463)
    archives = (
        Archive(
            file="102flowers.tgz",
            holds="jpg",
            page=HOME,
            url=f"{HOME}102flowers.tgz",
            checksums=("md5:52808999861908f626f3c1f4e79d11fa",),
        ),
        split_archive(SPLIT, "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
    )
