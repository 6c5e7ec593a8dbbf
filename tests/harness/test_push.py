"""push: what is written comes back bit for bit, and the upload is one commit of three files."""

import json
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import zoo
from harness.cli import main
from harness.publishable import load_publishable
from zoo.prompts import save_prompts
from zoo.sizes import EMBEDDED
from zoo.weights import blocks_fingerprint

PATCHRANK = "clip_vit_s14_patchrank60"
PREDICTOR = EMBEDDED / "clip_vit_s14.imgfocus_lit.patchrank.block3.safetensors"
IMAGES = torch.randn(2, 3, 196, 196, generator=torch.Generator().manual_seed(0))


class StandIn:
    """The hub's client, as far as push uses it."""

    made: ClassVar[list["StandIn"]] = []

    def __init__(self, **facts: Any) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        StandIn.made.append(self)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", (repo_id, private, exist_ok)))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> None:
        self.calls.append(("upload", (repo_id, tuple(allow_patterns), commit_message)))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    return StandIn


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    dense = timm.create_model("clip_vit_s14", pretrained=True)
    text = nn.functional.normalize(torch.randn(3, 256), dim=1)
    tensors = {
        "classifier": text,
        "logit_scale": torch.tensor(3.0),
        "visual": torch.randn(1, 4, 384),
    }
    facts = {"model": "clip_vit_s14", "tag": "imgfocus_lit", "width": 384, "dataset": "toy"}
    facts |= {"weights": blocks_fingerprint(dense.state_dict())}
    facts |= {"recipe": {"tokens": "v", "count": 4}, "provenance": {"shots": 2, "draw": 0}}
    return save_prompts(tmp_path / "p.safetensors", tensors, classes=("a", "b", "c"), **facts).path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["clip_vit_s14", PATCHRANK, "clip_vit_s14_tome50.imgfocus_lit"])
@torch.no_grad()
def test_the_folder_is_the_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "out"
    for _ in range(2):  # what push wrote it may write again
        assert main(["push", name, "--to", "me/pruned", "--folder", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert f"wrote {folder}: README.md" in capsys.readouterr().out
    model = timm.create_model(name, pretrained=True).eval()
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert repr(again) == repr(model)
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert str(EMBEDDED) not in (folder / "config.json").read_text()


@torch.no_grad()
def test_a_tuned_model(prompts: Path, tmp_path: Path):
    asked = ["--prompts", str(prompts), "--folder", str(tmp_path / "out")]
    assert main(["push", PATCHRANK, "--to", "me/tuned", *asked]) == 0
    model = timm.create_model(PATCHRANK, prompts=str(prompts)).eval()
    again = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification\n" in card
    assert "Classes, in the order of the logits: a, b, c." in card
    assert '- recipe: `{"count": 4, "tokens": "v"}`' in card
    assert "| output | logits of 3 classes |" in card
    assert "--methods patchrank --keeps 0.6 --datasets toy --shots 2 --tokens v" in card
    found = load_publishable(f"local-dir:{tmp_path}/out")
    assert found.classes == ("a", "b", "c")
    assert found.weights() == load_publishable("clip_vit_s14").weights()
    assert found.provenance == load_publishable(PATCHRANK, (), prompts).provenance


@torch.no_grad()
def test_a_folder_is_published_on_with_what_is_known_of_it(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["push", PATCHRANK, "--to", "me/a", "--folder", str(first)]) == 0
    assert main(["push", f"local-dir:{first}", "--to", "me/a", "--folder", str(second)]) == 0
    for name in ("README.md", "model.safetensors"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    told = [json.loads((f / "config.json").read_text())["provenance"] for f in (first, second)]
    assert told[0] == told[1]
    assert told[0]["predictors"][0]["provenance"]["images"] == 1000


def test_a_model_of_the_hub_brings_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--me--a"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots").mkdir()
    there = folder / "snapshots" / commit
    assert main(["push", PATCHRANK, "--to", "me/a", "--folder", str(there)]) == 0
    found = load_publishable("hf-hub:me/a")
    named = load_publishable(PATCHRANK)
    assert found.provenance == named.provenance
    assert (found.arch, found.tag, found.license) == (named.arch, named.tag, "mit")
    assert found.weights() == named.weights()


@torch.no_grad()
def test_a_model_that_zoo_reduce_made(tmp_path: Path):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=5)
    vit.pretrained_cfg.pop("license", None)
    model = zoo.reduce(vit.eval(), method="evit", keep=0.5, reduce_at=[1])
    timm.models.save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    asked = ["--to", "me/mine", "--folder", str(tmp_path / "out")]
    assert main(["push", f"local-dir:{tmp_path}/mine", *asked]) == 0
    again = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
    images = IMAGES[:, :, :64, :64]
    assert torch.equal(again(images), model(images))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown\n" in card
    assert "Nobody wrote down under which licence the tower's weights are." in card
    assert "Nothing was measured, and no command measures these settings." in card


def test_the_upload_is_one_commit_of_three_files(
    hub: type[StandIn], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["push", PATCHRANK, "--to", "me/pruned", "--private"]) == 0
    (api,) = hub.made
    assert api.calls == [
        ("create", ("me/pruned", True, True)),
        (
            "upload",
            (
                "me/pruned",
                ("README.md", "config.json", "model.safetensors"),
                "Upload model and card",
            ),
        ),
    ]
    assert sorted(api.files) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "w").write_bytes(api.files["model.safetensors"])
    wanted = timm.create_model(PATCHRANK, pretrained=True).state_dict()
    sent = load_file(tmp_path / "w")
    assert sent.keys() == wanted.keys()
    assert all(torch.equal(sent[key], value) for key, value in wanted.items())
    assert "wrote https://huggingface.co/me/pruned: README.md (" in capsys.readouterr().out


def test_a_dry_run_sends_nothing_and_shows_the_card(
    hub: type[StandIn], capsys: pytest.CaptureFixture[str]
):
    assert main(["push", "clip_vit_s14_evit50", "--to", "me/pruned", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing was written or sent; it would be README.md (")
    assert 'model = timm.create_model("hf-hub:me/pruned", pretrained=True).eval()' in out
    assert hub.made == []


def test_no_hub_is_one_error_with_another_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The real client, which is offline in tests."""
    assert main(["push", "clip_vit_s14", "--to", "me/dense"]) == 2
    text = said(capsys)
    assert "error: can't upload to 'me/dense': " in text
    assert "offline" in text
    assert "'hf auth login' or set HF_TOKEN" in text
    assert "'hf upload me/dense DIR'" in text


def test_no_token_is_one_error(
    hub: type[StandIn], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: Any, **__: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required\nlines follow")

    monkeypatch.setattr(hub, "create_repo", refuse)
    assert main(["push", "clip_vit_s14", "--to", "me/dense"]) == 2
    assert "can't upload to 'me/dense': Token is required (log in with" in said(capsys)
    assert [api.files for api in hub.made] == [{}]


def test_a_predictor_of_ones_own(tmp_path: Path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(PREDICTOR.read_bytes())
    found = load_publishable(PATCHRANK, [own])
    assert found.provenance == load_publishable(PATCHRANK).provenance
    assert set(found.provenance["digests"]) == {"predictor"}
