"""ImageNet-A: photographs that a ResNet-50 gets wrong, of 200 classes of ImageNet."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.synsets import SynsetDataset

HOME = "https://github.com/hendrycks/natural-adv-examples"


class ImageNetA(SynsetDataset):
    """Hard photographs of 200 classes; for testing only."""

    name = "imagenet-a"
    title = "ImageNet-A, natural adversarial examples"
    license = "MIT"
    source = "UC Berkeley, 2019"
    homepage = HOME
    citation = (
        "D. Hendrycks, K. Zhao, S. Basart, J. Steinhardt, D. Song, Natural Adversarial "
        "Examples, CVPR 2021"
    )
    folder = "imagenet-adversarial"
    images = "imagenet-a"
    synset_list = "imagenet_a"
    class_count = 200
    counts = counted(train=0, val=0, test=7500)
    archives = (
        Archive(
            file="imagenet-a.tar",
            holds="imagenet-a",
            page=HOME,
            url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
            checksums=("sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",),
        ),
    )
