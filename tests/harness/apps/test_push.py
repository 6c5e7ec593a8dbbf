"""push: what is written comes back; the card says what is recorded and computed."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY, create_autospec

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from by_hand import replace
from packing import contents
from PIL import Image
from safetensors.torch import load
from torch import nn

import zoo
from harness.apps.push import FILES, Publishable, load_publishable, model_card
from harness.cli.entry import main
from harness.measure.cost import gflops
from harness.records.record import read_records
from harness.report.folder import markdown
from harness.report.tables import group_records, sections
from zoo.core.digests import blocks_fingerprint
from zoo.learning.recovery import Recovered
from zoo.loading.adopt import trainable
from zoo.loading.learned_files import save_prompts

PATCHRANK = "clip_vit_s14_patchrank60"
IMAGES = torch.randn(2, 3, 196, 196, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    dense = timm.create_model("clip_vit_s14", pretrained=True)
    text = nn.functional.normalize(torch.randn(3, 256), dim=1)
    tensors = {"classifier": text, "logit_scale": torch.tensor(3.0), "visual": torch.randn(4, 384)}
    facts = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "width": 384, "dataset": "toy"}
    facts |= {"weights": blocks_fingerprint(dense.state_dict())}
    facts |= {"recipe": {"tokens": "v", "count": 4}, "provenance": {"shots": 2, "draw": 0}}
    return save_prompts(tmp_path / "p.safetensors", tensors, classes=("a", "b", "c"), **facts).path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@torch.no_grad()
def push_and_load(name: str, card_line: str, folder: Path, **learned: Path) -> Publishable:
    """Push to a folder what a file was learned for, and see that its model, card and provenance come back."""
    flags = [word for what, file in learned.items() for word in (f"--{what}", str(file))]
    assert main(["push", "--model", name, "--to", "me/it", *flags, "--folder", str(folder)]) == 0
    files = {what: str(file) for what, file in learned.items()}
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(again(IMAGES), timm.create_model(name, pretrained=True, **files).eval()(IMAGES))
    assert not torch.equal(again(IMAGES), timm.create_model(name, pretrained=True).eval()(IMAGES))
    assert card_line in (folder / "README.md").read_text()
    found = load_publishable(f"local-dir:{folder}")
    assert found.provenance == load_publishable(name, **learned).provenance
    return found


@pytest.mark.command("push")
def test_a_tuned_model(prompts: Path, tmp_path: Path):
    line = "Classes, in the order of the logits: a, b, c."
    assert push_and_load(PATCHRANK, line, tmp_path / "out", prompts=prompts).classes == ("a", "b", "c")


SETS = [{"name": "toy", "revision": "12ab", "images": 5, "held_out": 3}]


def test_a_recovered_model(tmp_path: Path):
    name = "clip_vit_s14_tome50"
    vit, drawn = timm.create_model(name, pretrained=True).eval(), torch.Generator().manual_seed(3)
    shapes = {key: vit.get_parameter(own).shape for key, own in trainable(vit, "norm").items()}
    tensors = {key: 0.01 * torch.randn(shape, generator=drawn) for key, shape in shapes.items()}
    own: dict[str, Any] = {"name": "clip_vit_s14", "tag": "imgfocus_lit", "datasets": SETS}
    file = tmp_path / "norm.safetensors"
    zoo.save_recovery(file, vit, Recovered(tensors, (0.05,), (0.04,)), zoo.RecoveryConfig(what="norm"), **own)
    push_and_load(name, "| toy | 12ab | 5 | 0.0500 | 0.0400 |", tmp_path / "out", recovery=file)


def test_the_upload_is_one_commit_of_three_files(monkeypatch: pytest.MonkeyPatch):
    api, files = create_autospec(huggingface_hub.HfApi, instance=True), dict[str, bytes]()
    api.upload_folder.side_effect = lambda *, folder_path, **_: files.update(contents(folder_path))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **facts: api)
    assert main(["push", "--model", PATCHRANK, "--to", "me/pruned", "--private"]) == 0
    api.create_repo.assert_called_once_with("me/pruned", private=True, exist_ok=True)
    facts = {"folder_path": ANY, "allow_patterns": list(FILES), "commit_message": "Upload model and card"}
    api.upload_folder.assert_called_once_with(repo_id="me/pruned", **facts)
    assert sorted(files) == sorted(FILES)
    weights = timm.create_model(PATCHRANK, pretrained=True).state_dict()
    sent = load(files["model.safetensors"])
    assert sent.keys() == weights.keys()
    assert all(torch.equal(sent[key], value) for key, value in weights.items())


def test_a_pushed_folder_needs_the_zoo_alone(tmp_path: Path):
    """Its code is opened where nothing of the harness can be had, and gives what timm's format gives."""
    folder = tmp_path / "out"
    flags = ["--format", "sentence-transformers", "--folder", str(folder)]
    assert main(["push", "--model", PATCHRANK, "--to", "me/it", *flags]) == 0
    blocked = ("harness", "jinja2", "pyarrow", "matplotlib", "rich", "ray")
    code = f"""
import sys
sys.modules |= dict.fromkeys({blocked})
import torch
from PIL import Image
from zoo.deploy.sentence_tower import SentenceTower
tower = SentenceTower.load({str(folder)!r})
inputs = tower.preprocess([Image.new("RGB", (50, 40), "red")])
torch.save([inputs["pixel_values"], tower(inputs)["sentence_embedding"]], {str(tmp_path / "features.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    pixels, features = torch.load(tmp_path / "features.pt")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(features, nn.functional.normalize(model(pixels)))
    card = (folder / "README.md").read_text()
    use = card.partition("## Use")[2]
    assert 0 < use.index("pip install clip-patchrank") < use.index("import zoo  #") < use.index("## Measured")


@torch.no_grad()
def test_open_clip_opens_a_pushed_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, card_line = tmp_path / "out", 'open_clip.create_model_and_transforms("hf-hub:me/it")'
    command = ["push", "--to", "me/it", "--format", "open_clip"]
    assert main([*command, "--model", PATCHRANK, "--folder", str(folder)]) == 0
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = zoo.create_clip(PATCHRANK)
    torch.testing.assert_close(model.eval().encode_image(IMAGES), ours.model.encode_image(IMAGES))
    words = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red apple"])
    torch.testing.assert_close(model.encode_text(words), ours.model.encode_text(ours.tokenizer(["a red apple"])))
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50)
    assert torch.equal(preprocess(image), ours.preprocess(image))
    assert card_line in (folder / "README.md").read_text()
    own = timm.create_model("clip_vit_s14_random50", pretrained=True, reduce_at=[1])
    timm.models.save_for_hf(own, tmp_path / "own", safe_serialization=True)
    assert main([*command, "--model", f"local-dir:{tmp_path}/own", "--folder", str(tmp_path / "no")]) == 2
    assert "has other settings or sizes than clip_vit_s14_random50" in said(capsys)


def test_no_hub_is_one_error_with_another_way(capsys: pytest.CaptureFixture[str]):
    """The real client, which is offline in tests."""
    assert main(["push", "--model", "clip_vit_s14", "--to", "me/dense"]) == 2
    text = said(capsys)
    for words in ("error: can't upload to 'me/dense': ", "offline", "'hf upload me/dense DIR'"):
        assert words in text


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.txt").touch()
    assert main(["push", "--model", "clip_vit_s14", "--to", "me/a", "--folder", str(tmp_path)]) == 2
    assert "holds 'mine.txt': give a new or empty one" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_facts_are_computed():
    model = load_publishable(PATCHRANK)
    card = model_card(model, "me/pruned")
    cost, dense = gflops(model.vit, 196), gflops(zoo.reduce(model.vit, method=None), 196)
    assert f"| GFLOPs per image | {cost.gflops:.2f} (dense: {dense.gflops:.2f}) |" in card
    with torch.no_grad():
        trace = model.vit.trace(torch.zeros(1, 3, 196, 196))
    assert f"| {', '.join(map(str, trace.tokens_per_block))} |" in card


def test_the_table_is_the_records_of_this_model_and_of_dense():
    run, model = Path(__file__).parents[3] / "docs" / "results" / "records.jsonl", load_publishable(PATCHRANK)
    records = read_records(run)
    rows = model.find_rows(records, run)
    assert {row.model for row in rows} == {"clip_vit_s14", PATCHRANK}
    assert {row.dataset for row in rows} == {"fashion", "emoji", "photos"}
    table = markdown([part.wide(summary=True) for part in sections(group_records(rows))])
    assert table.strip() in model_card(model, "me/pruned", rows)
    mine = next(row for row in rows if row.model == PATCHRANK)
    for change in ({"weights_sha256": "0" * 16}, {"model": "other"}, {"method_config": {"keep": 0.6}}):
        with pytest.raises(ValueError, match=r"has no record of .*with these weights \(74efc4"):
            model.find_rows([replace(mine, **change)], run)


def test_licences_that_restrict_are_told_and_must_be_confirmed(tmp_path: Path, capsys, monkeypatch):
    tag, license_ = "dfn2b", "apple-ascl"
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model(f"clip_vit_b16_random50.{tag}", reduce_at=[1], **small)
    timm.models.save_for_hf(model, tmp_path / "nc", safe_serialization=True)
    sent = []
    monkeypatch.setattr("harness.apps.push.upload", lambda *a, **k: sent.append(a) or "there")
    args = ["push", "--model", f"local-dir:{tmp_path}/nc", "--to", "me/nc"]
    for flags in ([], ["--accept-license", "mit"]):
        assert main([*args, *flags]) == 2
        assert f"the weights '{tag}' are under '{license_}'" in said(capsys)
    assert sent == []
    assert main([*args, "--accept-license", license_]) == 0
    assert len(sent) == 1
    assert main([*args, "--folder", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"\nlicense: other\nlicense_name: {license_}\n" in card
    assert f"base_model: timm/vit_base_patch16_clip_224.{tag}\n" in card
