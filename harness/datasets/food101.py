"""Food-101: dishes."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
SPLIT = "split_zhou_Food101.json"


class Food101(ZhouDataset):
    """101 dishes; the training images hold some noise by intention."""

    name = "food101"
    title = "Food-101, dishes"
    license = "scientific fair use (images of Foodspotting)"
    source = "ETH Zurich, 2014"
    homepage = HOME
    citation = (
        "L. Bossard, M. Guillaumin, L. Van Gool, Food-101: Mining Discriminative Components "
        "with Random Forests, ECCV 2014"
    )
    templates = ("a photo of {}, a type of food.",)
    folder = "food-101"
    images = "images"
    split_file = SPLIT
    class_count = 101
    counts = counted(train=50_500, val=20_200, test=30_300)
    archives = (
        Archive(
            file="food-101.tar.gz",
            holds="images",
            page=HOME,
            url="https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            checksums=("md5:85eeb15f3717b99a5da872d97d918f87",),
            strip="food-101",
        ),
        split_archive(SPLIT, "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    )
