"""Caltech-101: objects, without the background and one of its two kinds of faces."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://data.caltech.edu/records/mzrjq-6wc02"
SPLIT = "split_zhou_Caltech101.json"


class Caltech101(ZhouDataset):
    """A hundred kinds of objects; CoOp leaves out BACKGROUND_Google and Faces_easy."""

    name = "caltech101"
    title = "Caltech-101, a hundred kinds of objects"
    license = "CC BY 4.0"
    source = "Caltech, 2003 (CaltechDATA mzrjq-6wc02)"
    homepage = HOME
    citation = (
        "L. Fei-Fei, R. Fergus, P. Perona, Learning generative visual models from few "
        "training examples, CVPR workshop 2004"
    )
    templates = ("a photo of a {}.",)
    folder = "caltech-101"
    images = "101_ObjectCategories"
    split_file = SPLIT
    class_count = 100
    counts = counted(train=4128, val=1649, test=2465)
    archives = (
        Archive(
            file="101_ObjectCategories.tar.gz",
            holds="101_ObjectCategories",
            page=HOME,
        ),
        Archive(
            file="caltech-101.zip",
            holds="101_ObjectCategories.tar.gz",
            page=HOME,
            url=f"{HOME}/files/caltech-101.zip",
            checksums=("md5:3138e1922a9193bfa496528edbbc45d0",),
            strip="caltech-101",
        ),
        split_archive(SPLIT, "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
    )
