"""Oxford-IIIT Pet: breeds of cats and dogs."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
SPLIT = "split_zhou_OxfordPets.json"


class OxfordPets(ZhouDataset):
    """37 breeds of cats and dogs."""

    name = "oxford-pets"
    title = "Oxford-IIIT Pet, breeds of cats and dogs"
    license = "CC BY-SA 4.0"
    source = "Visual Geometry Group, Oxford, 2012"
    homepage = HOME
    citation = "O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, Cats and Dogs, CVPR 2012"
    templates = ("a photo of a {}, a type of pet.",)
    folder = "oxford_pets"
    images = "images"
    split_file = SPLIT
    class_count = 37
    counts = counted(train=2944, val=736, test=3669)
    archives = (
        Archive(
            file="images.tar.gz",
            holds="images",
            page=HOME,
            url=f"{HOME}data/images.tar.gz",
            checksums=("md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",),
        ),
        split_archive(SPLIT, "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
    )
