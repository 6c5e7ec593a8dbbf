"""Towers from the hub's cache are measured as the embedded one is."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import zoo
from harness.cli.entry import main
from harness.datasets import get_dataset
from harness.datasets.few_shot import subset
from harness.records.record import Record, read_records

COUNT = 12


@pytest.fixture
def measured(small_clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run ``compare`` on a few emoji and return its records by model."""

    def run(model: str) -> dict[str, Record]:
        words = ["--model", model, "--methods", "tome", "--keeps", "0.5", "--dataset", "emoji"]
        words += ["--batches", "1", "--rounds", "6", "--limit", str(COUNT)]
        output = tmp_path / "run"
        assert main(["compare", *words, "--output", str(output), "--fresh"]) == 0
        return {record.method: record for record in read_records(output / "records.jsonl")}

    return run


def hits(name: str) -> list[bool]:
    """Classify by open_clip's words: one image and one prompt at a time."""
    model, preprocess, tokenizer = zoo.create_clip(name)
    dataset = get_dataset("emoji")
    answers = []
    with torch.inference_mode():
        rows = []
        for caption in dataset.classes:
            prompts = [tokenizer([t.format(caption)]) for t in dataset.templates]
            rows.append(sum(model.encode_text(p, normalize=True)[0] for p in prompts))
        classes = F.normalize(torch.stack(rows), dim=-1)
        for example in subset(dataset.split("test"), COUNT):
            feature = model.encode_image(preprocess(example.image)[None])[0]
            answers.append(int((classes @ feature).argmax()) == example.label)
    return answers


def test_towers_of_the_hub_and_of_open_clip_give_the_same_answers(small_clip, measured, tmp_path, capsys):
    theirs = small_clip.original()
    small_clip.cached(theirs)
    file = tmp_path / "mine.safetensors"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, file)
    ours = measured("clip_vit_b32.openai")
    again = measured(f"open_clip:ViT-B-32-quickgelu/{file}")
    for method, name in (("dense", "clip_vit_b32"), ("tome", "clip_vit_b32_tome50")):
        assert (ours[method].model, ours[method].tag) == (name, "openai")
        assert again[method].correct.tolist() == ours[method].correct.tolist() == hits(f"{name}.openai")
        assert again[method].mean("gflops") == ours[method].mean("gflops")
        assert str(tmp_path) not in again[method].model
    capsys.readouterr()
    assert main(["eval", "--model", "clip_vit_b32_tome50.openai", "--dataset", "emoji", "--limit", str(COUNT)]) == 0
    assert "clip_vit_b32.openai" in capsys.readouterr().out
