"""How many ranked images a predictor needs."""

from harness.datasets.base import Dataset
from harness.few_shot import SHOTS
from harness.studies.base import Line, Study
from harness.studies.workshop import Workshop


class Shots(Study):
    """Fit on few ranked images per class, and on all."""

    name = "shots"
    title = "Ranked images per class that a predictor learns from"
    question = "How many images must be ranked?"
    keeps = (0.6, 0.3)

    def lines(self, shop: Workshop, dataset: Dataset) -> list[Line]:
        """Return one line per number of images, all of them first."""
        golden = shop.golden()
        truth = shop.rankings(dataset.images_of, shop.config.split, golden)
        most = min(shop.most_shots(name, golden) for name in shop.config.datasets)
        if lacking := [k for k in SHOTS if k > most]:
            shop.progress.say(
                f"left out: {', '.join(map(str, lacking))} images per class; a class has {most} "
                "ranked ones"
            )
        found = []
        for keep in shop.config.keeps_or(self.keeps):
            for shots in (None, *reversed([k for k in SHOTS if k <= most])):
                fits = shop.fitted(shop.config.datasets, golden, shots=shots)
                many = "all" if shots is None else str(shots)
                rows = shop.predicted(fits, keep, truth, f"{many} shots")
                labels = {"images per class": many, "images": str(fits[0].images)}
                found.append(Line(labels=labels, rows=rows, asked=keep))
        return found
