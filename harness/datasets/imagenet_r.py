"""ImageNet-R: art, toys and other renditions of 200 classes of ImageNet."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.synsets import SynsetDataset

HOME = "https://github.com/hendrycks/imagenet-r"


class ImageNetR(SynsetDataset):
    """Renditions of 200 classes; for testing only."""

    name = "imagenet-r"
    title = "ImageNet-R, renditions"
    license = "MIT"
    source = "UC Berkeley, 2020"
    homepage = HOME
    citation = (
        "D. Hendrycks, S. Basart, N. Mu et al., The Many Faces of Robustness: A Critical "
        "Analysis of Out-of-Distribution Generalization, ICCV 2021"
    )
    folder = "imagenet-rendition"
    images = "imagenet-r"
    synset_list = "imagenet_r"
    class_count = 200
    counts = counted(train=0, val=0, test=30_000)
    archives = (
        Archive(
            file="imagenet-r.tar",
            holds="imagenet-r",
            page=HOME,
            url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            checksums=("sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",),
        ),
    )
