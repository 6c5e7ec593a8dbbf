"""What holds for every test: no hub, no display, fixed seeds, honest skips."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # tools aren't installed; whatever is comes first
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub
import hypothesis
import pytest
import timm
import torch
from lively import Build, lively
from open_clip import factory, pretrained
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import zoo
from harness.records.times import LatencyRecord, Timing, describe_machine, time_fields
from zoo.loading.open_clip import offer
from zoo.loading.sizes import SIZES

# A shared machine stalls now and then, and the same commit must give the same verdict twice.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

Fill = Callable[[str, str, Callable[[Path], Any]], Path]
SAMPLES = (10.0, 11.0, 10.5, 10.2, 10.1, 10.3)  # ms of a dense model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="also run tests that ask a package registry")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    present = {"--network": config.getoption("--network"), "a CUDA device": torch.cuda.is_available()}
    for item in items:
        for marker, need in (("network", "--network"), ("cuda", "a CUDA device")):
            if item.get_closest_marker(marker) and not present[need]:
                item.add_marker(pytest.mark.skip(reason=f"needs {need}"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_no_width() -> None:
    """Towers this small lose time to a second thread; xdist tells its workers a width that no terminal has."""
    torch.set_num_threads(1)
    os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for other processes, or be disturbed by them."""
    monkeypatch.setattr("harness.measure.timing.watch_others", lambda seconds: None)
    monkeypatch.setattr("harness.measure.timing.why_busy", lambda dense: "")


@pytest.fixture(autouse=True)
def _int8_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test int8 on any processor: it is right to rounding, if slow."""
    monkeypatch.setattr("zoo.deploy.runtime.is_made_for_int8", lambda: True)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run a test without gradients: ``pytestmark = pytest.mark.usefixtures("no_grad")``."""
    with torch.no_grad():
        yield


TINY = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 3, "num_classes": 7}


@pytest.fixture
def tiny() -> Build:
    """Build any timm name as a tower of 64 patches, 6 blocks, 48 channels and 7 outputs."""

    def build(name: str, *, noise: float = 0.1, **overrides: object) -> nn.Module:
        return lively(timm.create_model(name, **{**TINY, **overrides}), noise, torch.Generator().manual_seed(1))

    return build


@pytest.fixture(params=sorted(zoo.METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def half(method: str, tiny: Build) -> zoo.ReducedViT:
    """Build a tiny tower that ends with 32 of its 64 patch tokens, by each method in turn."""
    return tiny(f"clip_vit_b16_{method}50")


@pytest.fixture
def tower(tiny: Build) -> zoo.ReducedViT:
    """Build a tower lively enough that every window of patches matters."""
    return tiny("clip_vit_b16", noise=0.3)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


class Evil:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def evil(tmp_path: Path) -> Evil:
    return Evil(tmp_path / "mark")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the Hugging Face cache, and the user's own, at empty folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def fill(hub: Path) -> Fill:
    """Put a file into the cache as the hub's client lays it out."""

    def put(repo: str, name: str, write: Callable[[Path], Any]) -> Path:
        folder = hub / f"models--{repo.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        for part in ("refs", "blobs", f"snapshots/{commit}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        write(folder / "blobs" / "new")
        digest = hashlib.sha256((folder / "blobs" / "new").read_bytes()).hexdigest()
        (folder / "blobs" / "new").rename(folder / "blobs" / digest)
        (folder / "snapshots" / commit / name).symlink_to(Path("../../blobs") / digest)
        return folder

    return put


VISION = {"image_size": 224, "width": 64, "patch_size": 32, "layers": 4}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
HUB = "timm/vit_base_patch32_clip_224.openai"


class SmallClip:
    """b32 as a tower of 49 patches, four blocks and 64 channels, its weights and a hub's cache."""

    NAMES = ("clip_vit_b32", "clip_vit_b32_clsattn50", "clip_vit_b32_tome50")

    def __init__(self, folder: Path, fill: Fill) -> None:
        self.fill = fill
        self.weights = folder / "cache" / "clip-patchrank" / "weights"
        self.open_clip = folder / "cache" / "clip-patchrank" / "open_clip"

    @torch.no_grad()
    def original(self, *, quick: bool = True) -> CLIP:
        """Make open_clip's model, always with the same weights."""
        torch.manual_seed(5)
        model = CLIP(512, VISION, TEXT, quick_gelu=quick).eval()
        for value in model.parameters():
            if value.ndim == 1:  # biases and norms begin the same in every model
                value.add_(0.1 * torch.randn_like(value))
        model.token_embedding.weight.mul_(20)  # small ones make all texts alike
        model.logit_scale.fill_(3.5)
        return model

    def cached(self, model: CLIP, repo: str = HUB) -> Path:
        """Lay a model into a fabricated cache of the hub."""
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        folder = self.fill(repo, "open_clip_model.safetensors", lambda path: save_file(state, path))
        return next(folder.glob("snapshots/*/*"))


@pytest.fixture
def small_clip(fill: Fill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SmallClip:
    args = {**SIZES["b32"].vit_args, "embed_dim": 64, "depth": 4, "num_heads": 1}
    monkeypatch.setitem(SIZES, "b32", dataclasses.replace(SIZES["b32"], vit_args=args))
    config = {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": TEXT}
    configs = {"ViT-B-32": config, "ViT-B-32-quickgelu": {**config, "quick_gelu": True}}
    configs = {**factory._MODEL_CONFIGS, **configs}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", configs)
    monkeypatch.setattr(pretrained, "_PRETRAINED", dict(pretrained._PRETRAINED))
    for name in SmallClip.NAMES:
        offer(zoo.MODELS[name])
    return SmallClip(tmp_path, fill)


@pytest.fixture
def latency_record() -> Callable[..., LatencyRecord]:
    """Make a time of a dense model; ``samples`` and ``dense`` give it times and a ratio."""
    machine = describe_machine(torch.device("cpu")) | {"device_name": "A CPU", "cores": 2}

    def make(samples: tuple[float, ...] = SAMPLES, dense: tuple[float, ...] = (), **facts: Any) -> LatencyRecord:
        batch = facts.get("batch", 1)
        reference = Timing(batch=batch, samples_ms=dense) if dense else None
        if samples:
            timing = Timing(batch=batch, samples_ms=samples)
            facts = time_fields(timing, reference) | facts
        defaults: dict[str, Any] = {
            **{"created": "2026-11-26T05:00:00+00:00", "version": "0.1.0", "method": "dense"},
            **{"model": "clip_vit_b16", "tag": "openai", "weights_sha256": "abc", "keep": 1.0},
            **{"random_weights": False, "image_size": (64, 64), "device": "cpu", "batch": 1},
            **{"precision": "float32", "runtime": "eager", "threads": 1, "stopwatch": "metronome"},
            **{"method_config": {}, "machine": machine, "gflops": 2.0, "params": 1000},
            **{"tokens_per_block": (65,) * 6, "final_tokens": 64},
        }
        return LatencyRecord(**(defaults | facts))

    return make


FOREIGN_VISION = {"layers": 4, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
FOREIGN_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
FOREIGN = {"embed_dim": 24, "vision_cfg": FOREIGN_VISION, "text_cfg": FOREIGN_TEXT}
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}


@pytest.fixture(params=["local-dir", "open_clip"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Save a tiny tower of another library, and return its name."""
    torch.manual_seed(15)
    if request.param == "open_clip":
        monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", FOREIGN)
        save_file(CLIP(**FOREIGN).state_dict(), tmp_path / "w.safetensors")
        return f"open_clip:tiny/{tmp_path}/w.safetensors"
    save_for_hf(
        timm.create_model("vit_base_patch16_siglip_224", **SMALL_VIT), tmp_path / "mine", safe_serialization=True
    )
    return f"local-dir:{tmp_path}/mine"
