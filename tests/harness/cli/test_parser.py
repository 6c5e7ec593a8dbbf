"""The set of commands and flags, their help and examples, and slips."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import entry
from harness.cli.command import CommandParser
from harness.cli.entry import COMMANDS, FAMILIES, main, parse
from harness.cli.flags import change
from harness.datasets import shipped_facts
from tools.site import commands
from zoo.core.recipes import TuneConfig

ROOT = Path(__file__).parents[3]


def test_flags_have_one_spelling_and_a_help_and_examples_are_commands(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in COMMANDS.items():
        leaf = CommandParser(command)
        with pytest.raises(SystemExit, match="0"):
            main([*path.split(), "--help"])
        head, _, examples = capsys.readouterr().out.partition("\nexample")
        assert max(map(len, head.splitlines())) <= 80
        for line, _ in command.examples:
            assert line in examples
            assert line.endswith("--help") or parse(shlex.split(line)).command == path
        flags = {name for action in leaf._actions for name in action.option_strings}
        assert flags.isdisjoint({"--models", "--datasets", "--out"}), path
        assert "--method" not in flags or "--methods" not in flags, path  # one model has one method and one keep rate
        assert "--keep" not in flags or "--keeps" not in flags, path
        assert all(action.help for action in leaf._actions), path


def test_help_and_slips_import_nothing_heavy():
    words = [["--version"], *(path.split() for path in FAMILIES)]
    words += [[*path.split(), "--help"] for path in (*FAMILIES, *COMMANDS)]
    words += [["rank", "--limt", "3"], ["compare", "--keeps", "60"]]
    code = (
        f"import sys\nfrom harness.cli.entry import main\nfor words in {words!r}:\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        f"import runpy\nrunpy.run_path({str(ROOT / 'tools' / 'site.py')!r})['commands']()\n"
        "heavy = {'torch', 'timm', 'numpy', 'zoo', 'pyarrow', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no flag '--limt': did you mean '--limit'?" in done.stderr
    assert re.match(r"clip-patchrank .+\npython .+, torch .+, timm .+, open_clip_torch ", done.stdout)


def test_the_page_of_commands_has_each_once_and_describes_its_json():
    heads = re.findall(r"^### (.*)$", commands(), re.M)
    assert sorted(head for head in heads if head in COMMANDS) == sorted(COMMANDS)
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    described = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [path for path in COMMANDS if f"`{path}`" not in described] == []


PUSH = "push --to me/a --dry-run --model"
EXPORT = "export --model clip_vit_s14_clsattn60 --output file"
FINAL_ONLY = "only `patchrank study final`, and `study NAME --split final`"


@pytest.mark.parametrize(("command", "match"), [
    ("compair", "command 'compair': did you mean 'compare'?"),
    ("fit predicter", "fit 'predicter': did you mean 'predictor'?"),
    ("study ordre", "STUDY 'ordre': did you mean 'order'?"),
    ("study ablation --golden block=2", "--golden changes nothing in study ablation"),
    ("compare --methode evit", "no flag '--methode': did you mean '--methods'?"),
    ("compare --split tset", "--split 'tset': did you mean 'test'?"),
    ("compare --limit x", "--limit 'x': expected a whole number"),
    ("compare --rounds x", "--rounds invalid int value: 'x'; see patchrank compare --help"),
    ("compare --keeps 60", "--keeps 60: did you mean 0.6?"),
    ("compare --images photos", "no flag '--images': did you mean '--dataset images:photos'?"),
    ("compare --models clip_vit_s14", "no flag '--models': did you mean '--model'?"),
    ("compare --model clip_vit_s14_patchrank60", "'clip_vit_s14_patchrank60' is reduced; give the dense one"),
    ("compare --methods evti", "method 'evti': did you mean 'evit'?"),
    ("compare --dataset fashion --dataset emoji", "--dataset is given twice: give it once, with all its values"),
    ("latency --model X", "model 'X': "),
    ("compare --device nonsense", "--device 'nonsense' isn't available"),
    ("rank --dataset emoji --images x", "--images: not allowed with argument --dataset"),
    ("rank", "one of the arguments --dataset --images is required; see patchrank rank --help"),
    ("list everything", "no argument 'everything' is expected here"),
    ("list --root gone", "--root 'gone' does not exist"),
    ("eval --model clip_vit_s14_patchrank65 --dataset emoji", "clip_vit_s14 --methods patchrank --keeps 0.65"),
    ("latency --model clip_vit_b16_patchrank60", "fit predictor --model clip_vit_b16.openai --block 3"),
    ("compare --shots 4 -1", "--shots -1: expected 0, which is by text, or a number from 1"),
    ("compare --tokens prob", "tokens='prob': did you mean 'probe'? expected one of t, v,"),
    ("eval --model clip_vit_s14 --dataset emoji --shots 2 --prompts x", "--prompts 'x' with --shots 2"),
    ("compare --shots 1 --seed -1", "--seed -1: expected a number from 0"),
    ("-q --json rank --images gone", "--images 'gone' does not exist"),
    ("fit predictor", "nothing to learn from: give --dataset or --rankings"),
    ("show gone.png", "image 'gone.png' does not exist"),
    ("show fashion:val:3 --keeps 0.5 1.5", "--keeps (0.5, 1.5): expected fractions in (0, 1)"),
    ("show fashion:val:3 --keeps 0.5 0.5", "each once"),
    ("show fashion:val:3 --scale 0", "scale=0.0: expected a number in [0.25, 8]"),
    ("show fashion:val:3 --output show.svg", "--output 'show.svg': expected a file's name"),
    ("show fashion:val:3 --left tmoe", "--left 'tmoe': did you mean 'tome'"),
    ("compare --split final", FINAL_ONLY),
    ("study scores --split final", FINAL_ONLY),
    ("study scores --seeds 0", "--seeds 0"),
    ("study reproduce table8", "'table8': did you mean 'table"),
    ("datasets check --dataset caltech101", "dataset 'caltech101' isn't shipped here; say where it lies: --root"),
    ("check --update --methods tome", "--methods with --update takes "),
    ("check --methods tmoe", "--methods: the expectation has no such row; it is of clip_vit_s14"),
    ("check --keeps 2", "--keeps 2: expected fractions in (0, 1]"),
    ("compare a b a", "compare 'a' 'b' 'a': expected two runs"),
    ("compare gone gone", "run 'gone': there is no such file or folder; expected a file of records"),
    ("compare a --device cpu", "--device can't be given with runs"),
    ("check /dev/null/x.jsonl --update", "--update in '/dev/null' is a file, or lies in one; expected"),
    ("push --model clip_vit_s14_patchrank60 --to ../x", "--to '../x': expected OWNER/NAME"),
    (f"{PUSH} open_clip:ViT-B-16/openai", "push takes names of `list`, local-dir:FOLDER and hf-hub:OWNER/NAME"),
    (f"{PUSH} timm:vit_small_patch16_dinov3", "timm.models.save_for_hf(zoo.reduce(TOWER, "),
    (f"{PUSH} local-dir:here --prompts p.safetensors", "carries its weights: leave out"),
    (f"{PUSH} clip_vit_s14_patchrank60 --predictor no", "no predictor at"),
    (f"{EXPORT} --runtime onnxruntime --precision bfloat16", "precision 'bfloat16' of onnxruntime"),
    (f"{EXPORT} --runtime exported-program --limit 1", "1 images to check with of 'photos'"),
])  # fmt: skip
def test_wrong_use_is_one_line_that_says_what_was_meant_and_leaves_nothing(
    command: str, match: str, capsys, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIP_PATCHRANK_DATA", raising=False)
    assert main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("patchrank: error: ")) == ("", 1)
    assert match in err
    assert err.count("--help") <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("changes", "match"), [
    ("ancor=2", "'ancor', did you mean: anchor"),
    ("seed=2", "'seed'"),
    ("count=2.5", "count must be int, got '2.5'"),
    ("count=none", "got 'none'"),
])  # fmt: skip
def test_changes_of_settings(changes: str, match: str):
    good = "coupling=none,anchor=2, learning-rate=.0005,augment=false"
    made = replace(TuneConfig(), coupling="none", anchor=2.0, learning_rate=5e-4, augment=False)
    assert change(TuneConfig(), good, "--tune") == made
    with pytest.raises(ValueError, match=match):
        change(TuneConfig(), changes, "--tune")


def test_the_subcommand_of_the_extension_guide_is_one_like_the_others(monkeypatch, capsys):
    section = (ROOT / "docs" / "extend.md").read_text("utf-8").partition("\n## Add a subcommand\n")[2]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    command = names["COUNT"]
    monkeypatch.setitem(entry.COMMANDS, command.path, command)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Count the images of each class." in capsys.readouterr().out
    dataset = shipped_facts("emoji")
    counts = [(dataset.labels("val") == label).sum() for label in range(len(dataset.classes))]
    assert main(["count", "emoji", "--split", "val"]) == 0
    shown = re.findall(r"│ (.+?) +│ +(\d+) │", capsys.readouterr().out)
    assert shown == [(name, str(n)) for name, n in zip(dataset.classes, counts, strict=True)]
