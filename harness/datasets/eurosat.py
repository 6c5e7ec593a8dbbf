"""EuroSAT: land use as Sentinel-2 sees it, in RGB."""

from harness.datasets.archives import Archive
from harness.datasets.rooted import counted
from harness.datasets.zhou import ZhouDataset, split_archive

HOME = "https://github.com/phelber/EuroSAT"
SPLIT = "split_zhou_EuroSAT.json"


class EuroSAT(ZhouDataset):
    """Ten kinds of land use; CoOp words their names anew."""

    name = "eurosat"
    title = "EuroSAT, land use from above, RGB"
    license = "MIT"
    source = "DFKI, 2018"
    homepage = HOME
    citation = (
        "P. Helber, B. Bischke, A. Dengel, D. Borth, EuroSAT: A Novel Dataset and Deep "
        "Learning Benchmark for Land Use and Land Cover Classification, JSTARS 2019"
    )
    templates = ("a centered satellite photo of {}.",)
    folder = "eurosat"
    images = "2750"
    split_file = SPLIT
    class_count = 10
    counts = counted(train=13_500, val=5400, test=8100)
    archives = (
        Archive(
            file="EuroSAT.zip",
            holds="2750",
            page=HOME,
            url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            checksums=("md5:c8fa014336c82ac7804f0398fcb19387",),
        ),
        split_archive(SPLIT, "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    )
