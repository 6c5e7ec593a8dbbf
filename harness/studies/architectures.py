"""Table 6: what a predictor's network is worth."""

from dataclasses import replace

from harness.datasets.base import Dataset
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop
from zoo.predictor import ARCHITECTURES
from zoo.vit import ReducedViT


class Architectures(Study):
    """Fit every architecture by one loss."""

    name = "architectures"
    title = "Predictor architectures (paper: Table 6)"
    question = "Which network predicts the golden ranking best, and does accuracy follow?"
    keeps = (0.6, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per architecture, the paper's full-width Mixer first."""
        golden = shop.golden()
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        full = int(shop.dense.embed_dim)
        shapes = [("mixer", full), *((arch, shop.config.fit.width) for arch in ARCHITECTURES)]
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            dense = shop.gflops(shop.baseline("random", keep, None, "")[0])
            for arch, width in shapes:
                recipe = replace(shop.config.fit, arch=arch, width=width)
                fits = shop.fitted(shop.config.datasets, golden, recipe)
                rows = shop.predicted(fits, keep, truth, f"{arch} {width}")
                labels = {
                    "network": arch,
                    "width": str(width),
                    "parameters": f"{_parameters(rows[0].vit):,}",
                    "its GFLOPs": f"{shop.gflops(rows[0]) - dense:.4f}",
                }
                found.append(Line(labels=labels, rows=rows, asked=keep))
        return found


def _parameters(vit: ReducedViT) -> int:
    assert vit.reducer is not None
    return sum(parameter.numel() for parameter in vit.reducer.parameters())
