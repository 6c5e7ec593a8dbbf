"""CLIP_benchmark as PyPI has it evaluates our models through open_clip and agrees with us."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from packing import tarred
from rich.console import Console

import zoo  # makes our names known to open_clip  # noqa: F401
from harness.cli.entry import parse
from harness.cli.measure import evaluated
from harness.datasets import get_dataset
from harness.datasets.base import Example
from harness.datasets.few_shot import subset
from harness.records.metrics import RECALL_AT
from harness.records.record import Record

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


def write_tar(path: Path, examples: Iterable[Example], **members: list[str]) -> None:
    """Write pictures and texts in webdataset's layout, which is theirs."""
    path.parent.mkdir()
    (path.parent / "nshards.txt").write_text("1")
    contents = []
    for index, example in enumerate(examples):
        example.image.save(image := io.BytesIO(), "png")
        contents.append((f"s{index:07d}.png", image.getvalue()))
        contents += [(f"s{index:07d}.{suffix}", own[index].encode()) for suffix, own in members.items()]
    path.write_bytes(tarred(contents))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the first test emoji."""
    dataset, root = get_dataset("emoji"), tmp_path_factory.mktemp("emoji")
    (root / "classnames.txt").write_text("\n".join(dataset.classes))
    templates = [template.replace("{}", "{c}") for template in dataset.templates]
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    split = subset(dataset.split("test"), COUNT)
    write_tar(root / "test" / "0.tar", split, cls=[str(example.label) for example in split])
    return root


def record_of(words: list[str], model: str) -> Record:
    [records] = evaluated(parse(words), Console(quiet=True))
    (record,) = [record for record in records if record.model == model]
    return record


def theirs_of(model: str, dataset: str, **options: str) -> tuple[Any, Any, Any, Any]:
    """Return a model, its tokenizer, a data set and its loader, as their command has them."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.models import load_clip

    clip, transform, tokenizer = load_clip("open_clip", model, TAG, None, device="cpu")
    data = build_dataset(dataset, transform=transform, download=False, **options)
    return clip.eval(), tokenizer, data, torch.utils.data.DataLoader(data.batched(16), batch_size=None)


@pytest.mark.parametrize("model", MODELS)
def test_every_image_gets_the_same_answer(model: str, folder: Path):
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier

    clip, tokenizer, data, loader = theirs_of(model, "wds/emoji", root=str(folder), split="test")
    args = (clip, tokenizer, data.classes, data.templates, "cpu")
    classifier = zero_shot_classifier(*args, amp=False)
    logits, labels = run_classification(clip, classifier, loader, "cpu", amp=False)
    words = ["eval", "--model", model, "--dataset", "emoji", "--limit", str(COUNT)]
    answers = record_of(words, model).correct
    assert len(answers) == COUNT
    assert (logits.argmax(dim=1) == labels).tolist() == answers.tolist()
    assert 0.2 < answers.mean() < 0.9  # neither chance nor a test that can't fail


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write emoji in their layout of retrieval, two captions each, all different."""
    dataset, root = get_dataset("emoji"), tmp_path_factory.mktemp("captions")
    (root / "dataset_type.txt").write_text("retrieval")
    words = [f"{kind} or {other}" for kind in dataset.classes[:8] for other in dataset.classes[:8]]
    pairs = [f"{words[index]}\n{words[-1 - index]}" for index in range(len(words) // 2)]
    write_tar(root / "test" / "0.tar", subset(dataset.split("test"), len(pairs)), txt=pairs)
    return root


def test_recall_is_theirs(captioned: Path):
    """Their recall is of captions and images in turn; ours, over images, is equal with as many captions each."""
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    options = {"root": str(captioned), "task": "zeroshot_retrieval"}
    clip, tokenizer, _, loader = theirs_of(MODELS[1], "wds/captions", **options)
    words = ["eval", "--model", MODELS[1], "--dataset", f"wds:{captioned}", "--full"]
    record = record_of(words, MODELS[1])
    for k in RECALL_AT:
        theirs = evaluate(clip, loader, tokenizer, "cpu", amp=False, recall_k_list=[k])
        assert record.mean(f"recall_image_{k}") == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=5e-4)
        assert record.mean(f"recall_text_{k}") == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < record.mean("recall_text_1") < 1
