"""Python that a stranger's folder brings is run by no command that takes a model, whatever is said and answered."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from harness.cli.command import CommandParser
from harness.cli.entry import COMMANDS, main
from zoo.deploy.setup import Setup

VISION = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
MODEL = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# What commands need beside a model, by the name of the argument; the places are made by the test.
NEEDED = {
    "dataset": "fashion", "datasets": "images:pictures", "output": "out.json", "to": "me/it", "name": "scores",
    "names": "table1", "images": "pictures/0.png", "source": "pictures", "method": "rankmerge", "keep": "0.5",
    "query": "a",
}  # fmt: skip
OPTIONAL = {
    "choose": ["--images", "pictures", "--min-cosine", "0.9"], "rank": ["--images", "pictures"],
    "fit predictor": ["--dataset", "fashion", "--limit", "5"], "fit budgets": ["--dataset", "fashion"],
}  # fmt: skip
TAKERS = [path for path, one in COMMANDS.items() if {"model", "models"} & {a.dest for a in CommandParser(one)._actions}]
# What a folder can name Python for, and the commands' name of the folder.
PLACES = {
    "open_clip tokenizer": "open_clip:local-dir:", "open_clip text tower": "open_clip:local-dir:",
    "model": "transformers:", "processor": "transformers:", "tokenizer": "transformers:",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


class Stranger:
    """A folder with a model, which ``arm`` gives Python that leaves a mark."""

    def __init__(self, place: str, folder: Path) -> None:
        self.place, self.folder, self.mark = place, folder, folder.parent / "mark"
        self.name = f"{PLACES[place]}{folder}"
        letters = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])}
        transformers.CLIPTokenizer(vocab=letters, merges=[]).save_pretrained(folder)
        if place.startswith("open_clip"):
            self._write("open_clip_config.json", {"model_cfg": MODEL, "preprocess_cfg": {}})
            torch.manual_seed(0)
            save_file(CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")
            return
        ends = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 12}
        vision = {**SIZE, "image_size": 32, "patch_size": 8}
        config = transformers.CLIPConfig(text_config={**SIZE, **ends}, vision_config=vision, projection_dim=16)
        transformers.CLIPModel(config).save_pretrained(folder)
        transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)

    def _write(self, file: str, facts: dict[str, Any]) -> None:
        known = json.loads((self.folder / file).read_text()) if (self.folder / file).exists() else {}
        (self.folder / file).write_text(json.dumps(known | facts))

    def arm(self) -> None:
        """Bring Python, in a class that transformers doesn't have."""
        (self.folder / "theirs.py").write_text(f"open({str(self.mark)!r}, 'w')\nclass Theirs: pass\n")
        config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"}}
        words = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
        match self.place:
            case "open_clip tokenizer":
                self._write("config.json", {"model_type": "theirs"})
                self._write("tokenizer_config.json", words)
                text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
                self._write("open_clip_config.json", {"model_cfg": {**MODEL, "text_cfg": TEXT | text}})
            case "open_clip text tower":
                self._write("config.json", config)
                text = {"hf_model_name": str(self.folder), "hf_model_pretrained": False}
                self._write("open_clip_config.json", {"model_cfg": {**MODEL, "text_cfg": TEXT | text}})
            case "model":
                self._write("config.json", config)
            case "processor":
                facts = {"image_processor_type": "Theirs", "auto_map": {"AutoImageProcessor": "theirs.Theirs"}}
                self._write("preprocessor_config.json", facts)
            case "tokenizer":
                self._write("tokenizer_config.json", words)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder of pictures' parent, with a hub and caches of its own, and answer each question by a yes."""
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.new("RGB", (40, 40), (60 * index, 0, 0)).save(tmp_path / f"pictures/{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))


def command_line(path: str, model: str) -> list[str]:
    """Give a command a model and what else it needs."""
    words = [*path.split(), *OPTIONAL.get(path, ())]
    for action in CommandParser(COMMANDS[path])._actions:
        if action.dest in ("model", "models"):
            words += ["--model", model]
        elif action.option_strings and (action.required or (path == "fit recovery" and action.dest in NEEDED)):
            words += [action.option_strings[0], NEEDED[action.dest]]
        elif not action.option_strings and action.dest in NEEDED:
            words.insert(len(path.split()), NEEDED[action.dest])
    return words


def refuse(words: list[str], stranger: Stranger, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(words)
    assert not stranger.mark.exists(), words
    [refusal] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line] or [""]
    if stranger.place == "tokenizer":  # which transformers itself has, of a CLIP
        assert code == 0, refusal
    else:
        assert code == 2, words
        # Some take no such model, and load nothing.
        assert any(text in refusal for text in ("never run", "push takes names", "no exported file")), refusal


@pytest.mark.parametrize("place", PLACES)
def test_no_command_runs_it(place: str, tmp_path: Path, pictures: None, capsys: pytest.CaptureFixture[str]):
    """Said by --model, by a setup's file, and by vectors, which were made before the folder had it."""
    stranger = Stranger(place, tmp_path / "folder")
    assert main(["embed", "pictures", "--model", stranger.name]) == 0
    Setup(model=stranger.name).write(tmp_path / "setup.json")
    capsys.readouterr()
    stranger.arm()
    refuse(["search", "a"], stranger, capsys)
    for path in TAKERS if place in ("open_clip tokenizer", "model") else ["embed"]:
        refuse(command_line(path, stranger.name), stranger, capsys)
        if any("a file that `choose` wrote" in str(a.help) for a in CommandParser(COMMANDS[path])._actions):
            refuse(command_line(path, "setup.json"), stranger, capsys)
