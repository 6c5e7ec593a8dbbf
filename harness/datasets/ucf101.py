"""UCF101: actions, by the middle frame of each video."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import LIST, ZhouDataset, drive, split_archive

HOME = "https://www.crcv.ucf.edu/data/UCF101.php"
SPLIT = "split_zhou_UCF101.json"


class UCF101(ZhouDataset):
    """101 actions, in the first official split; frames and words are by CoOp."""

    name = "ucf101"
    title = "UCF101, actions, middle frames of videos"
    license = "none stated"
    source = "UCF, 2012; middle frames by CoOp's authors"
    homepage = HOME
    citation = (
        "K. Soomro, A. R. Zamir, M. Shah, UCF101: A Dataset of 101 Human Actions Classes From"
        " Videos in The Wild, CRCV-TR-12-01, 2012"
    )
    templates = ("a photo of a person doing {}.",)
    folder = "ucf101"
    images = "UCF-101-midframes"
    split_file = SPLIT
    class_count = 101
    counts = counted(train=7639, val=1898, test=3783)
    archives = (
        Archive(
            file="UCF-101-midframes.zip",
            holds="UCF-101-midframes",
            page=LIST,
            url=drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),
        ),
        split_archive(SPLIT, "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
    )
