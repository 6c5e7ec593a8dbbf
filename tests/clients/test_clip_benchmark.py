"""CLIP_benchmark as PyPI has it evaluates our models through open_clip and agrees with us."""

import io
from pathlib import Path

import pytest
import torch
from packing import tarred

import zoo  # makes our names known to open_clip  # noqa: F401
from harness.base.terminal import Progress
from harness.cli.entry import parse
from harness.cli.measure import evaluated
from harness.datasets import get_dataset
from harness.datasets.few_shot import subset

COUNT = 32
TAG = "imgfocus_lit"
MODELS = ("clip_vit_s14", "clip_vit_s14_patchrank60")
# What their own code and its dependencies warn of.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the first test emoji in webdataset's layout, which is theirs."""
    dataset, root = get_dataset("emoji"), tmp_path_factory.mktemp("emoji")
    (root / "classnames.txt").write_text("\n".join(dataset.classes))
    templates = [template.replace("{}", "{c}") for template in dataset.templates]
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    (root / "test").mkdir()
    (root / "test" / "nshards.txt").write_text("1")
    contents = []
    for index, example in enumerate(subset(dataset.split("test"), COUNT)):
        example.image.save(image := io.BytesIO(), "png")
        contents += [(f"s{index:07d}.png", image.getvalue()), (f"s{index:07d}.cls", str(example.label).encode())]
    (root / "test" / "0.tar").write_bytes(tarred(contents))
    return root


@pytest.mark.parametrize("model", MODELS)
def test_every_image_gets_the_same_answer(model: str, folder: Path):
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
    from clip_benchmark.models import load_clip

    clip, transform, tokenizer = load_clip("open_clip", model, TAG, None, device="cpu")
    data = build_dataset("wds/emoji", transform=transform, download=False, root=str(folder), split="test")
    loader = torch.utils.data.DataLoader(data.batched(16), batch_size=None)
    args = (clip.eval(), tokenizer, data.classes, data.templates, "cpu")
    classifier = zero_shot_classifier(*args, amp=False)
    logits, labels = run_classification(clip, classifier, loader, "cpu", amp=False)
    words = ["eval", "--model", model, "--dataset", "emoji", "--limit", str(COUNT)]
    [records] = evaluated(parse(words), Progress())
    [answers] = [record.correct for record in records if record.model == model]
    assert len(answers) == COUNT
    assert (logits.argmax(dim=1) == labels).tolist() == answers.tolist()
    assert 0.2 < answers.mean() < 0.9  # neither chance nor a test that can't fail
