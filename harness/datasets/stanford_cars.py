"""Stanford Cars: makes, models and years; its source is no longer online."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
SPLIT = "split_zhou_StanfordCars.json"


class StanfordCars(ZhouDataset):
    """196 cars by make, model and year, the year first."""

    name = "stanford-cars"
    title = "Stanford Cars, by make, model and year"
    license = "none stated; research only"
    source = "Stanford, 2013 (no longer online)"
    homepage = HOME
    citation = (
        "J. Krause, M. Stark, J. Deng, L. Fei-Fei, 3D Object Representations for Fine-Grained"
        " Categorization, ICCV workshop 2013"
    )
    templates = ("a photo of a {}.",)
    folder = "stanford_cars"
    images = ""
    split_file = SPLIT
    class_count = 196
    counts = counted(train=6509, val=1635, test=8041)
    archives = (
        Archive(
            file="cars_train.tgz",
            holds="cars_train",
            page=HOME,
        ),
        Archive(
            file="cars_test.tgz",
            holds="cars_test",
            page=HOME,
        ),
        split_archive(SPLIT, "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
    )
