"""ImageNetV2: new test images for ImageNet, matched in frequency."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.synsets import SynsetDataset

HOME = "https://github.com/modestyachts/ImageNetV2"


class ImageNetV2(SynsetDataset):
    """Ten images of each of the 1,000 classes; for testing only."""

    name = "imagenetv2"
    title = "ImageNetV2, matched frequency"
    license = "MIT (repository); the images are of Flickr"
    source = "UC Berkeley, 2019"
    homepage = HOME
    citation = (
        "B. Recht, R. Roelofs, L. Schmidt, V. Shankar, Do ImageNet Classifiers Generalize to "
        "ImageNet?, ICML 2019"
    )
    folder = "imagenetv2"
    images = "imagenetv2-matched-frequency-format-val"
    synset_list = "imagenet"
    class_count = 1000
    counts = counted(train=0, val=0, test=10_000)
    archives = (
        Archive(
            file="imagenetv2-matched-frequency.tar.gz",
            holds="imagenetv2-matched-frequency-format-val",
            page=HOME,
            url="https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
            "imagenetv2-matched-frequency.tar.gz",
            checksums=(
                "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
                # As it was on S3.
                "sha256:a32004f9e773279307499059d320336a23ccdc62cb32063da29bae9bd04c122c",
            ),
        ),
    )

    @property
    def class_folders(self) -> tuple[str, ...]:
        """Numbers from 0, as words: sorted as such, "10" would come before "2"."""
        return tuple(map(str, range(self.class_count)))
