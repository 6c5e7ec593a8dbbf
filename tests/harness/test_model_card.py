"""The card says what is recorded and computed, and nothing else."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from harness.cli import main
from harness.cost import gflops
from harness.model_card import model_card
from harness.publishable import Publishable, load_publishable
from harness.records import Record, read_records, write_records
from harness.report.sections import markdown_table

RUN = Path(__file__).parents[2] / "docs" / "results" / "records.jsonl"
NAME = "clip_vit_s14_patchrank60"


@pytest.fixture(scope="module")
def model() -> Publishable:
    return load_publishable(NAME)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record for record in read_records(RUN) if record.method in ("dense", "patchrank")]


def test_the_table_is_the_records_of_this_model_and_of_dense(
    model: Publishable, records: list[Record]
):
    rows = model.rows(records, RUN)
    assert {row.model for row in rows} == {"clip_vit_s14", NAME}
    assert {row.dataset for row in rows} == {"fashion", "emoji"}
    assert {row.shots for row in rows} == {0}
    card = model_card(model, "me/pruned", rows)
    assert markdown_table(rows, summary=True).strip() in card
    for row in rows:
        assert f"revision {row.dataset_revision}" in card
        assert f"{100 * row.top1:.1f} [{100 * row.top1_low:.1f}, {100 * row.top1_high:.1f}]" in card
        assert f"{row.dataset} {row.split}" in card
        assert row.device_name in card
        assert row.dtype in card
    assert "Nothing was measured" not in card


def test_without_records_it_says_so_and_by_which_command(model: Publishable):
    card = model_card(model, "me/pruned", [])
    assert "Nothing was measured." in card
    command = "compare --models clip_vit_s14.imgfocus_lit --methods patchrank --keeps 0.6"
    assert command in card
    measured = card[card.index("## Measured") : card.index("## Rankings")]
    assert re.findall(r"\d+\.\d+ %|\d+\.\d+ \[", measured) == []


def test_operators_that_gflops_lack_are_told(model: Publishable, monkeypatch: pytest.MonkeyPatch):
    assert "GFLOPs lack" not in model_card(model, "me/pruned", [])
    cost = replace(gflops(model.vit, 196), unsupported=("aten::linalg_inv",))
    monkeypatch.setattr("harness.model_card.gflops", lambda *args: cost)
    card = model_card(model, "me/pruned", [])
    assert "GFLOPs lack operators of unknown cost: aten::linalg_inv." in card


def test_facts_are_computed(model: Publishable):
    card = model_card(model, "me/pruned", [])
    cost, dense = gflops(model.vit, 196), gflops(model.dense, 196)
    assert f"| GFLOPs per image | {cost.gflops:.2f} (dense: {dense.gflops:.2f}) |" in card
    assert f"| parameters | {sum(p.numel() for p in model.vit.parameters()):,} |" in card
    assert "| keep rate | 60.2 % |" in card
    assert "| patch tokens | 118 of 196 at the end |" in card
    with torch.no_grad():
        trace = model.vit.trace(torch.zeros(1, 3, 196, 196))
    assert f"| {', '.join(map(str, trace.tokens_per_block))} |" in card
    assert "[arXiv 2409.14607](https://arxiv.org/abs/2409.14607)" in card


def test_the_front_matter_is_what_the_hub_reads(model: Publishable):
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import ModelCard

    data = ModelCard(model_card(model, "me/pruned", [])).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name) == ("mit", "timm")
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "clip", "token-reduction", "patchrank"} <= set(data.tags)


def test_rankings_and_recipe_are_the_predictors_own(model: Publishable):
    card = model_card(model, "me/pruned", [])
    (facts,) = model.provenance["predictors"]
    assert f"- recipe: `{json.dumps(facts['recipe'], sort_keys=True)}`" in card
    for one in facts["provenance"]["rankings"]:
        assert f"| {one['dataset']} | {one['split']} | {one['revision']} | {one['model']} |" in card
    unknown = replace(model, provenance={})
    assert "Where the predictor is from wasn't written down." in model_card(unknown, "me/p", [])


def test_the_example_runs_on_the_written_folder(model: Publishable, tmp_path: Path):
    assert main(["push", NAME, "--to", "me/pruned", "--folder", str(tmp_path)]) == 0
    card = (tmp_path / "README.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    from PIL import Image

    known = {"image": Image.new("RGB", (300, 200), "red")}
    exec(code.replace("hf-hub:me/pruned", f"local-dir:{tmp_path}"), known)
    assert known["features"].shape == (1, 256)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"weights_sha256": "0" * 16}, False),
        ({"tag": "other"}, False),
        ({"model": "clip_vit_s14_patchrank50"}, False),
        ({"method_config": {"keep": 0.6, "reduce_at": [2]}}, False),
        ({"shots": 4, "tuning": "probe"}, False),
    ],
)
def test_records_of_another_model_are_refused(
    changes: dict, fits: bool, model: Publishable, records: list[Record], tmp_path: Path
):
    mine = next(record for record in records if record.model == NAME)
    changed = replace(mine, **changes)
    if fits:
        assert model.rows([changed], RUN) == [changed]
        return
    with pytest.raises(ValueError, match=r"has no record of .*with these weights \(74efc4.*; meas"):
        model.rows([changed], RUN)


def test_another_predictor_is_another_model(
    model: Publishable, records: list[Record], tmp_path: Path
):
    mine = next(record for record in records if record.model == NAME)
    other = replace(mine, method_config=mine.method_config | {"predictor": "0" * 16})
    with pytest.raises(ValueError, match=r"has no record of clip_vit_s14_patchrank60"):
        model.rows([other], RUN)
    write_records(tmp_path / "run.jsonl", [other])
    asked = ["--to", "me/a", "--dry-run", "--records", str(tmp_path / "run.jsonl")]
    assert main(["push", NAME, *asked]) == 2


def restricted(tmp_path: Path, tag: str) -> str:
    """Write a small model whose weights have another licence; return its name."""
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model(f"clip_vit_b16_random50.{tag}", reduce_at=[1], **small)
    timm.models.save_for_hf(model, tmp_path / "nc", safe_serialization=True)
    return f"local-dir:{tmp_path}/nc"


@pytest.mark.parametrize(
    ("tag", "license_"), [("metaclip_400m", "cc-by-nc-4.0"), ("dfn2b", "apple-ascl")]
)
def test_licences_that_restrict_are_told_and_must_be_confirmed(
    tag: str,
    license_: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    sent = []
    monkeypatch.setattr("harness.push.upload", lambda *a, **k: sent.append(a) or "there")
    args = ["push", restricted(tmp_path, tag), "--to", "me/nc"]
    assert main(args) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"the weights '{tag}' are under '{license_}', which may forbid publishing" in told
    assert f"add --accept-license {license_}" in told
    assert main([*args, "--accept-license", "mit"]) == 2
    assert f"are under '{license_}'" in " ".join(capsys.readouterr().err.split())
    assert sent == []
    assert main([*args, "--accept-license", license_]) == 0
    assert len(sent) == 1
    assert main([*args, "--folder", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    named = license_ if license_ == "cc-by-nc-4.0" else f"other\nlicense_name: {license_}"
    assert f"\nlicense: {named}\n" in card
    assert "It doesn't allow every use: read it before you use or pass on this model." in card
    assert f"base_model: timm/vit_base_patch16_clip_224.{tag}\n" in card


def test_settings_that_no_command_measures(tmp_path: Path):
    found = load_publishable(restricted(tmp_path, "openai"))
    assert found.settings()["reduce_at"] == [1]
    assert found.command() is None
    card = model_card(found, "me/p", [])
    assert "Nothing was measured, and no command measures these settings." in card
