"""A whole benchmark in miniature: a tower of 64 patches, three classes, a cache in a folder."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

import zoo
from harness.datasets.base import Dataset, Rendered, Split, SplitName
from harness.golden.store import Provenance, Rankings, cache_store
from harness.measure import rows as measured_rows
from harness.measure import timing
from harness.measure.rows import Tuned, Variant
from zoo.core.digests import blocks_fingerprint, fingerprint
from zoo.core.files import cache_folder
from zoo.core.learned import Predictor
from zoo.core.recipes import FitConfig, GoldenConfig, TuneConfig
from zoo.learning.fit import save_predictor
from zoo.loading import towers
from zoo.loading.clip import Clip, ClipParts, CompactText, tokenizer
from zoo.loading.learned_files import predictor_name, save_prompts
from zoo.loading.towers import Tower

ARCH, TAG = "clip_vit_b16", "openai"
WORDS = ("cat", "dog", "house")
COUNTS = {"train": 12, "val": 9, "test": 21}


class Toy(Dataset):
    """A mosaic on a colour that tells the class; the last class has a word that is never known and is left out."""

    name = "toy"
    title = "Toy images"
    license = "CC0-1.0"
    files = ()
    templates = ("a photo of a {}.", "{}")
    skip_unknown = True

    @property
    def classes(self) -> tuple[str, ...]:
        return (*WORDS, "zebra")

    def _split(self, name: SplitName) -> Split:
        labels = np.arange(COUNTS[name], dtype=np.int64) % 4

        def render(index: int, variant: int) -> Rendered:
            generator = np.random.default_rng((len(labels), index, variant))
            drawn = generator.integers(0, 120, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
            pixels = drawn + 120 * (np.arange(3) == labels[index])
            return Image.fromarray(pixels.astype(np.uint8)), None

        return Split(labels, lambda index: f"toy/{name}-{index}", render)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of it, in both directions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every timing be disturbed."""
    monkeypatch.setattr(timing, "why_busy", lambda dense: "spread of dense 40 %")
    monkeypatch.setattr(timing, "POLL_S", timing.WAIT_S)  # one repeat takes all of it


@pytest.fixture
def toy() -> Toy:
    return Toy()


class Named(Toy):
    """Toy images of the three classes whose names the text tower knows."""

    name, classes = "named", WORDS

    def _split(self, name: SplitName) -> Split:
        whole = super()._split(name)
        return whole.subset(np.flatnonzero(whole.labels < len(WORDS)))


@pytest.fixture
def named() -> Named:
    return Named()


class Unlabelled(Named):
    """The same images without classes."""

    name, classes = "unlabelled", ()

    def _split(self, name: SplitName) -> Split:
        whole = copy.copy(super()._split(name))
        whole._all_labels = np.full_like(whole._all_labels, -1)
        return whole


@pytest.fixture
def unlabelled() -> Unlabelled:
    return Unlabelled()


class Captioned(Unlabelled):
    """The same images, each with a caption of its own and one that images of a class share."""

    name, captioned = "captioned", True

    def captions_of(self, image_id: str) -> tuple[str, ...]:
        number = int(image_id.rpartition("-")[2])
        own = " ".join(WORDS[number // 3**place % 3] for place in range(3))
        return (f"a photo of a {own}.", WORDS[number % 4])


@pytest.fixture
def captioned() -> Captioned:
    return Captioned()


@pytest.fixture
def parts() -> ClipParts:
    """A CLIP model of 64 patches, 6 blocks and a joint space of 7."""
    torch.manual_seed(15)
    tiny = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3}
    visual = timm.create_model(f"{ARCH}.{TAG}", num_classes=7, **tiny)
    with torch.no_grad():
        for name, parameter in visual.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:  # biases would drown the images
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    known = tokenizer(12)([t.format(w) for t in Toy.templates for w in WORDS]).unique()
    geometry = {"context_length": 12, "width": 16, "heads": 2, "layers": 1, "output_dim": 7}
    model = Clip(visual, CompactText(known.tolist(), **geometry), math.log(20.0)).eval()
    return ClipParts(model, preprocess, tokenizer(12))


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


@pytest.fixture
def dense(parts: ClipParts) -> zoo.ReducedViT:
    return parts.model.visual


@pytest.fixture
def predictor_file() -> Path:
    """A random predictor for the tiny tower, in the user's cache."""
    torch.manual_seed(15)
    predictor = Predictor("conv", 48, 16, (8, 8))
    path = cache_folder() / "predictors" / predictor_name(ARCH, TAG, 3)
    config = FitConfig(arch="conv", width=16)
    options: dict[str, Any] = {"model": ARCH, "tag": TAG, "block": 3, "provenance": {}}
    save_predictor(predictor, path, config=config, **options)
    return path


@pytest.fixture
def ranked(dense: zoo.ReducedViT, toy: Toy) -> Callable[..., Rankings]:
    def make(split: SplitName = "test", count: int | None = None, **facts: Any) -> Rankings:
        ids = toy.split(split).image_ids[:count]
        drawn: NDArray[np.float64] = np.random.default_rng(1).random((len(ids), 64))
        known = {"model": f"{ARCH}.{TAG}", "weights": fingerprint(dense), "dtype": "float32"}
        known |= {"dataset": "toy", "revision": toy.revision, "split": split}
        known |= {"score": "preservation", "block": 3, "window": 2, "stride": 1}
        return Rankings.small(ids, drawn.astype(np.float16), Provenance(**known | facts))

    return make


@pytest.fixture
def tower(parts: ClipParts) -> Tower:
    return Tower(parts.model.visual, parts.preprocess, f"{ARCH}.{TAG}", parts)


@pytest.fixture
def miniature(tower: Tower, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.learning.predictor.load_tower", lambda name: tower)
    monkeypatch.setattr("harness.learning.predictor.get_dataset", lambda name: toy)


@pytest.fixture
def write(ranked: Callable[..., Rankings], tmp_path: Path) -> Callable[..., Path]:
    def call(split: SplitName, count: int | None = None, **facts: Any) -> Path:
        path = tmp_path / f"{split}-{len(list(tmp_path.iterdir()))}.parquet"
        ranked(split, count, **facts).write(path)
        return path

    return call


@pytest.fixture
def benchmark(parts: ClipParts, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create_clip", lambda name: parts)
    monkeypatch.setattr("harness.apps.compare.get_dataset", lambda name: toy)
    monkeypatch.setattr("harness.datasets.get_dataset", lambda name: toy)  # which the command line asks


@pytest.fixture
def shipped(ranked: Callable[..., Rankings]) -> Callable[..., Rankings]:
    def write(*split: Any, **facts: Any) -> Rankings:
        rankings = ranked(*split, **facts)
        own = cache_store("clip_vit_b16.openai", "toy", rankings.provenance.split, GoldenConfig())
        rankings.write(own.with_name(f"{own.name}.parquet"))
        return rankings

    return write


class QuickTuner:
    """Stand in for ``Tuner``: prompts drawn by row, shots and seed; remember the calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[dict[str, Any]] = []
        self.salt = 0

    def __call__(self, *_: Any, **__: Any) -> "QuickTuner":
        return self

    def tune(self, rows: Sequence[Variant], shots: int, seed: int, config: TuneConfig) -> dict[str, Tuned]:
        keys = [row.key for row in rows]
        self.calls.append({"rows": keys, "shots": shots, "seed": seed, "config": config})
        return {row.key: self.one(row.vit, row.key, shots, seed, config) for row in rows}

    def one(self, vit: zoo.ReducedViT, key: str, shots: int, seed: int, config: TuneConfig) -> Tuned:
        """Draw prompts; the last class has no words."""
        drawn = torch.Generator().manual_seed(1000 * shots + 10 * seed + len(key))
        text = F.normalize(torch.randn(4, 7, generator=drawn), dim=-1)
        text[3] = torch.nan
        tensors = {"classifier": text, "logit_scale": torch.tensor(3.0)}
        if "v" in config.tokens:
            tensors["visual"] = torch.randn(config.count, 48, generator=drawn)
        file = save_prompts(
            self.folder / f"{key} {shots} {seed} {config.tokens}.safetensors",
            tensors,
            **{"model": ARCH, "tag": TAG, "width": 48, "dataset": "toy"},
            weights=blocks_fingerprint(vit.state_dict()),
            classes=(*WORDS, "zebra"),
            recipe=asdict(config),
            provenance={"shots": shots, "draw": seed, "salt": self.salt},
        )
        return Tuned.of(vit, file)


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> QuickTuner:
    tuner = QuickTuner(tmp_path / "prompts")
    monkeypatch.setattr("harness.apps.compare.Tuner", tuner)
    return tuner


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    calls: list[tuple[list[str], int]] = []

    def counted(rows: Sequence[Variant], split: Any, *args: Any, **options: Any) -> Any:
        calls.append(([row.method for row in rows], len(split)))
        return real(rows, split, *args, **options)

    real = measured_rows.run_split
    monkeypatch.setattr(measured_rows, "run_split", counted)
    return calls


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start a real Ray on this machine, whose workers take one thread each."""
    ray = pytest.importorskip("ray")
    settings = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(num_cpus=3, **settings)
        yield
        ray.shutdown()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute on one thread, as workers do: their number decides the last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
