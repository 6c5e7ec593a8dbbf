"""Every example of docs/hub.md runs, on a cache and a hub that are fabricated here."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, ClassVar

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


class Hub:
    """The hub's client, which notes what it uploads."""

    uploads: ClassVar[list[list[str]]] = []

    def __init__(self, **_: Any) -> None:
        """Take what the client takes."""

    def create_repo(self, repo_id: str, **_: Any) -> None:
        assert repo_id == "OWNER/NAME"

    def upload_folder(self, *, folder_path: Path, **_: Any) -> None:
        self.uploads.append(sorted(path.name for path in Path(folder_path).iterdir()))


def snapshot(repo: str) -> Path:
    """Make a repository's folder in the cache."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "uploads", [])
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
    assert Hub.uploads == [["README.md", "config.json", "model.safetensors"]] * 2
    card = (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "Nothing was measured." in card


def test_what_it_says_of_names_is_true():
    """Repository, licences and the copied folder are those of the code."""
    cfgs = default_cfgs["clip_vit_b16_evit60"].cfgs
    repo = cfgs["openai"].hf_hub_id
    assert f"`{repo}`" in TEXT
    assert f"`models--{repo.replace('/', '--')}`" in TEXT
    restricted = {cfg.license for cfg in cfgs.values()} - {"mit"}
    assert restricted == {"cc-by-nc-4.0", "apple-ascl"}
    assert all(f"`{license_}`" in TEXT for license_ in restricted)
