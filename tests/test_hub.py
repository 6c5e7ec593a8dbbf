"""Every example of docs/hub.md runs, on a cache and a hub that are fabricated here."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from harness.cli.entry import main
from zoo.loading.registry import default_cfgs

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
VISION = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
SMALL = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(repo: str) -> Path:
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub, uploads = Mock(), []
    hub.upload_folder = lambda *, folder_path, **_: uploads.append(sorted(p.name for p in Path(folder_path).iterdir()))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: hub)
    with torch.device("meta"):
        shapes = CLIP(512, VISION, SMALL).state_dict()
    weights = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in shapes.items()}
    save_file(weights, "ViT-B-16.safetensors")
    repo = default_cfgs["clip_vit_b16_evit60"].cfgs["openai"].hf_hub_id
    save_file(weights, snapshot(repo) / "model.safetensors")
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "docs" / "results" / "records.jsonl", tmp_path / "results")

    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S):
        if "hf-hub:OWNER/NAME" in code:
            shutil.copytree("saved", snapshot("OWNER/NAME"), dirs_exist_ok=True)
        exec(code, names)
    assert names["tensors"]["visual.conv1.weight"].dtype == torch.float16
    for state in (names["model"].state_dict(), names["again"].state_dict()):
        model = names["timm"].create_model("clip_vit_s14_patchrank60", pretrained=True)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    commands = re.findall(r"^patchrank (.*)$", TEXT, re.M)
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert uploads == [["README.md", "config.json", "model.safetensors"]] * 2
    assert {call.args[0] for call in hub.create_repo.call_args_list} == {"OWNER/NAME"}
    assert "Nothing was measured." in (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")


def test_the_licences_it_names_are_those_of_the_code():
    cfgs = default_cfgs["clip_vit_b16_evit60"].cfgs.values()
    assert all(f"`{cfg.license}`" in TEXT for cfg in cfgs if cfg.license != "mit")
