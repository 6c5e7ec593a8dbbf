"""ImageNet-Sketch: drawings in black and white of the classes of ImageNet."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.synsets import SynsetDataset
from harness.datasets.zhou import drive

HOME = "https://github.com/HaohanWang/ImageNet-Sketch"


class ImageNetSketch(SynsetDataset):
    """Drawings of the 1,000 classes; for testing only."""

    name = "imagenet-sketch"
    title = "ImageNet-Sketch, drawings"
    license = "MIT (repository); the images are of the web"
    source = "CMU, 2019"
    homepage = HOME
    citation = (
        "H. Wang, S. Ge, Z. Lipton, E. P. Xing, Learning Robust Global Representations by "
        "Penalizing Local Predictive Power, NeurIPS 2019"
    )
    folder = "imagenet-sketch"
    images = "images"
    synset_list = "imagenet"
    class_count = 1000
    counts = counted(train=0, val=0, test=50_889)
    archives = (
        Archive(
            file="ImageNet-Sketch.zip",
            holds="images",
            page=HOME,
            url=drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),
            strip="sketch",
            into="images",
        ),
    )
