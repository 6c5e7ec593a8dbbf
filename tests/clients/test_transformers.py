"""The contract of tests/zoo/test_towers.py for transformers' towers, and what is built on them: tiny random ones."""

import copy
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from tiny_towers import check_any_order, check_export, check_methods
from torch import Tensor, nn

import zoo
from harness.apps.vectors.decode import prepare, stack
from harness.apps.vectors.embed import Encoder
from harness.apps.vectors.source import PictureFile
from harness.cli.entry import main
from zoo.core.files import blocks_fingerprint
from zoo.deploy.setup import Setup
from zoo.loading.towers import load_tower

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 8}
WIDE = {**SIZE, **IMAGE, "intermediate_size": 48}
TEXT = {**SIZE, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 16}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_size": 32}
NAFLEX = {**SIZE, "intermediate_size": 48, "patch_size": 8, "num_patches": 16}
DINOV2 = {**SIZE, **IMAGE, "mlp_ratio": 2}
# The model's class and the arguments of its config's.
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", WIDE),
    "clip projection": ("CLIPVisionModelWithProjection", {**WIDE, "projection_dim": 16}),
    "siglip": ("SiglipVisionModel", WIDE),
    "siglip 2": ("Siglip2VisionModel", NAFLEX),
    "dinov2": ("Dinov2Model", DINOV2),
    "dinov2 registers": ("Dinov2WithRegistersModel", {**DINOV2, "num_register_tokens": 2, "use_swiglu_ffn": True}),
    "dinov3": ("DINOv3ViTModel", {**WIDE, "num_register_tokens": 2}),
}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": WIDE, "projection_dim": 16}),
    "siglip": ("SiglipModel", {"text_config": TEXT, "vision_config": WIDE}),
    "siglip 2": ("Siglip2Model", {"text_config": TEXT, "vision_config": NAFLEX}),
}
# What the libraries themselves warn of.
transformers.logging.set_verbosity_error()
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_grad")]


@torch.no_grad()
def lively(kind: str, options: dict[str, Any]) -> nn.Module:
    model = getattr(transformers, kind)
    model = model(model.config_class(**options))
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model.eval()


def build(kind: str, implementation: str = "sdpa") -> nn.Module:
    tower = lively(*TOWERS[kind])
    tower.set_attn_implementation(implementation)
    return tower


def some_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def inputs_of(kind: str, count: int = 2) -> dict[str, Tensor]:
    images = some_images(count)
    if kind != "siglip 2":
        return {"pixel_values": images}
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mask, shapes = torch.ones(count, 16, dtype=torch.int32), torch.tensor([[4, 4]] * count)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def pooled(output: Any) -> Tensor:
    return output.image_embeds if "image_embeds" in output else output.pooler_output


@pytest.mark.parametrize(("kind", "implementation"), [("clip projection", "eager"), *((k, "sdpa") for k in TOWERS)])
def test_outputs_are_those_of_the_library(kind: str, implementation: str):
    tower, inputs = build(kind, implementation), inputs_of(kind)
    wanted = tower(**inputs, output_hidden_states=True)
    whole = zoo.reduce(tower, method="rankmerge", keep=1.0)(**inputs, output_hidden_states=True)
    assert set(whole) == {*wanted, "kept"}
    assert isinstance(whole, type(wanted))
    assert all(torch.equal(whole[name], wanted[name]) for name in wanted if name != "hidden_states")
    assert all(map(torch.equal, whole.hidden_states, wanted.hidden_states))
    assert torch.equal(whole.kept, torch.arange(16).expand(2, -1))
    half = zoo.reduce(tower, method="rankmerge", keep=0.5, reduce_at=1)
    assert isinstance(half, type(tower))
    output, trace = half(**inputs), half.trace(some_images())
    assert torch.equal(output.kept, trace.kept)
    assert output.last_hidden_state.shape == (2, half.prefix_count + 8, 32)
    assert torch.equal(pooled(output), trace.output)
    assert not torch.allclose(pooled(output), pooled(wanted), atol=1e-5)
    assert torch.equal(half(**inputs, return_dict=False)[-1], output.kept)
    tokens, [first, *_] = half.advance(half.embed(some_images()), taps=range(2))
    unmerging = zoo.reduce(tower, method="rankmerge", keep=0.5, reduce_at=1, unmerge=True)
    whole = unmerging(**inputs, output_hidden_states=True)
    assert torch.equal(whole.last_hidden_state, tokens._replace(x=output.last_hidden_state).unmerge())
    assert torch.equal(whole.hidden_states[1], first.x)
    assert torch.equal(whole.hidden_states[3], tokens.unmerge())
    assert torch.equal(pooled(whole), pooled(output))
    rough = copy.deepcopy(half).bfloat16().trace(some_images().bfloat16())
    assert (rough.final_tokens, rough.output.dtype) == (8, torch.bfloat16)
    assert rough.output.isfinite().all()


@pytest.mark.parametrize("kind", ["clip", "siglip 2"])
def test_every_method(kind: str):
    tower = build(kind)
    assert check_methods(tower, pooled(tower(**inputs_of(kind)))) == set()
    check_any_order(tower)
    check_export(tower)


def test_the_pool_counts_a_token_as_often_as_it_stands_for_and_its_probe_attends():
    tower = build("siglip")
    model = zoo.reduce(tower, method=None)
    tokens = model.embed(some_images())
    size = torch.ones(2, 16)
    size[:, 3], size[:, 7] = 3, 2
    x = torch.cat((tokens.x, tokens.x[:, [3, 3, 7]]), dim=1)
    wanted = model.finish(tokens._replace(x=x))
    assert torch.allclose(model.finish(tokens._replace(size=size)), wanted, atol=1e-5)
    tokens, _ = model.advance(model.embed(some_images()))
    x = tower.post_layernorm(tokens.x)
    shares = tower.head.attention(tower.head.probe.expand(2, -1, -1), x, x)[1][:, 0]
    assert torch.allclose(model.block(2).pooling_attention(tokens), shares, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_larger_images(kind: str):
    tower, images = build(kind), torch.randn(2, 3, 48, 64)
    larger = {"interpolate_pos_encoding": True} if kind == "clip" else {}
    assert zoo.reduce(tower, method="rankmerge", keep=0.5)(images, **larger).kept.shape == (2, 24)
    whole = zoo.reduce(tower, method="rankmerge", keep=1.0)(images, **larger)
    assert torch.equal(pooled(whole), pooled(tower(images, **larger)))


def test_siglip_2_takes_what_its_processor_gives():
    """Padding is cut off; images of several grids have different numbers of tokens."""
    tower = build("siglip 2")
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    wide, high = (Image.fromarray(pixels(shape)) for shape in ((24, 56, 3), (56, 24, 3)))
    inputs = processor(images=[wide, wide], return_tensors="pt")
    rows, columns = inputs["spatial_shapes"][0].tolist()
    assert rows * columns < 16
    wanted = tower(**inputs)
    whole = zoo.reduce(tower, method="rankmerge", keep=1.0)(**inputs)
    assert torch.allclose(whole.pooler_output, wanted.pooler_output, atol=1e-5)
    assert whole.kept.shape == (2, rows * columns)
    model = zoo.reduce(tower, method="rankmerge", keep=0.5)
    with pytest.raises(ValueError, match=r"spatial_shapes=\[\[.*expected one grid in a batch"):
        model(**processor(images=[wide, high], return_tensors="pt"))
    inputs["pixel_attention_mask"][0, 2] = 0
    with pytest.raises(ValueError, match=f"leaves out some of the {rows} x {columns} patches"):
        model(**inputs)


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape) + shape[0]).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_hold_a_tower(name: str):
    model = lively(*WHOLE[name])
    inputs = {"input_ids": torch.tensor([[0, 5, 9, 1]]), **inputs_of(name)}
    wanted = model(**inputs)
    whole = zoo.reduce(model, method="rankmerge", keep=1.0)
    assert type(whole) is type(model)
    assert torch.equal(whole(**inputs).logits_per_image, wanted.logits_per_image)
    half = zoo.reduce(model, method="rankmerge", keep=0.5)
    output = half(**inputs)
    assert output.vision_model_output.kept.shape == (2, 8)
    assert torch.equal(output.text_embeds, wanted.text_embeds)
    assert not torch.allclose(output.image_embeds, wanted.image_embeds, atol=1e-5)
    features = half.get_image_features(**inputs_of(name)).pooler_output
    assert torch.allclose(F.normalize(features), output.image_embeds, atol=1e-6)
    assert half.text_model is model.text_model
    assert torch.equal(model(**inputs).logits_per_image, wanted.logits_per_image)


def test_saved_models_are_the_dense_ones(tmp_path: Path):
    tower = build("dinov3")
    zoo.reduce(tower, method="rankmerge", keep=0.5).save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is transformers.DINOv3ViTModel
    torch.testing.assert_close(again(some_images()).pooler_output, tower(some_images()).pooler_output)
    assert zoo.reduce(again, method="rankmerge", keep=0.5)(some_images()).kept.shape == (2, 8)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    parts = {"image_processor": transformers.CLIPImageProcessor(**size)}
    parts["tokenizer"] = transformers.CLIPTokenizer(vocab=words, merges=[])
    transformers.CLIPProcessor(**parts).save_pretrained(tmp_path)
    lively(*WHOLE["clip"]).save_pretrained(tmp_path)
    return tmp_path


def test_sentence_transformers(clip_folder: Path):
    model = SentenceTransformer(str(clip_folder), device="cpu")
    images = [Image.fromarray(pixels((40, 50 + index, 3))) for index in range(3)]
    wanted, texts = model.encode(images), model.encode(["a cat"])
    whole = zoo.reduce(model, method="evit", keep=1.0, reduce_at=1)
    assert np.array_equal(whole.encode(images), wanted)
    half = zoo.reduce(model, method="evit", keep=0.5, reduce_at=1)
    assert type(half) is SentenceTransformer
    assert not np.allclose(half.encode(images), wanted, atol=1e-4)
    assert np.array_equal(half.encode(["a cat"]), texts)
    assert np.array_equal(model.encode(images), wanted)


@torch.enable_grad()
@pytest.mark.parametrize(("kind", "implementation"), [("clip", "sdpa"), ("siglip 2", "eager")])
def test_training(kind: str, implementation: str):
    tower = build(kind, implementation).train()
    for module in tower.modules():
        for rate in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.2)
    torch.manual_seed(5)
    wanted = pooled(tower(**inputs_of(kind)))
    torch.manual_seed(5)
    assert torch.equal(pooled(zoo.reduce(tower, method="rankmerge", keep=1.0)(**inputs_of(kind))), wanted)
    model = zoo.reduce(tower, method="rankmerge", keep=0.5)
    model.gradient_checkpointing_enable()
    assert model.grad_checkpointing
    pooled(model(**inputs_of(kind))).square().sum().backward()
    assert next(model.block_modules[2].mlp.parameters()).grad.isfinite().all()


def test_refusals():
    tower = build("clip")
    model = zoo.reduce(tower, method="rankmerge", keep=0.5)
    headless = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**WIDE, vision_use_head=False)).eval()
    assert zoo.reduce(headless, method="rankmerge", keep=0.5)(some_images()).pooler_output is None
    dinov2 = zoo.reduce(build("dinov2"), method=None)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    flexible = build("clip")
    flexible.config._attn_implementation = "flex_attention"
    for refused, match in (
        (lambda: model(some_images(), output_attentions=True), "output_attentions=True"),
        (lambda: dinov2(some_images(), attention_mask=torch.ones(2, 17)), "attention_mask"),
        (lambda: zoo.reduce(flexible, method="rankmerge", keep=0.5), "'flex_attention'"),
        (lambda: zoo.reduce(headless, method=None).trace(some_images()), "vision_use_head=False"),
        (lambda: zoo.reduce(headless, method="evit", keep=0.5), "the query that pools"),
        (lambda: zoo.reduce(text, method=None), "CLIPTextModel"),
    ):
        with pytest.raises(ValueError, match=match):
            refused()


def test_the_harness_takes_a_folder_with_its_text_tower(clip_folder: Path):
    model, tower = transformers.CLIPModel.from_pretrained(clip_folder).eval(), load_tower(f"transformers:{clip_folder}")
    image, processor = Image.fromarray(pixels((40, 50, 3))), transformers.CLIPProcessor.from_pretrained(clip_folder)
    inputs = processor(images=[image], text=["a cat"], return_tensors="pt")
    assert tower.name == f"transformers:{clip_folder.name}"
    assert torch.equal(tower.preprocess(image), inputs["pixel_values"][0])
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(tower.vit(inputs["pixel_values"]), features)
    assert tower.clip is not None
    text = tower.clip.model.encode_text(tower.clip.tokenizer(["a cat"]))
    assert torch.allclose(text, model.get_text_features(inputs["input_ids"]).pooler_output, atol=1e-6)
    assert tower.clip.model.logit_scale.item() == pytest.approx(model.logit_scale.item())
    whole = blocks_fingerprint(model.vision_model.state_dict(), "encoder.layers.")
    assert blocks_fingerprint(tower.vit.state_dict(), tower.vit.blocks_prefix) == whole
    half = zoo.reduce(tower.vit, method="rankmerge", keep=0.5)
    wanted = zoo.reduce(model, method="rankmerge", keep=0.5).get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(half(inputs["pixel_values"]), wanted)


def test_siglip_2_from_a_folder_takes_squares(tmp_path: Path):
    """A square of the tower's own size is what its processor makes of it, in exports, too; the harness has one grid."""
    model = build("siglip 2")
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    for each in (model, processor):
        each.save_pretrained(tmp_path)
    tower = load_tower(f"transformers:{tmp_path}")
    square = Image.fromarray(pixels((32, 32, 3)))
    wanted = model(**processor(images=square, return_tensors="pt")).pooler_output
    assert tower.preprocess(square).shape == (3, 32, 32)
    image = tower.preprocess(square)[None]
    assert torch.allclose(tower.vit(image), wanted, atol=1e-5)
    half = zoo.reduce(tower.vit, method="rankmerge", keep=0.5)
    assert zoo.export_model(half, tmp_path / "half.onnx", image.expand(2, -1, -1, -1), format="onnx").deviation < 1e-5


@pytest.mark.parametrize("damage", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_refused_folders(damage: str, tmp_path: Path):
    build("dinov2").save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path)
    (tmp_path / damage).unlink()
    words = "no config.json there" if damage == "config.json" else ""
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_tower(f"transformers:{tmp_path}")


def test_the_guides_example_prints_what_it_says():
    page = (Path(__file__).parents[2] / "docs" / "towers.md").read_text(encoding="utf-8")
    section = page.partition("\n## Vision-language models\n")[2]
    code, printed = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", section, re.DOTALL).groups()
    code = f"import torch; torch.manual_seed(0)\n{code}"  # else an end token comes early once in a while
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(printed)


def test_llava_without_reduction_is_the_dense_one():
    configs = {"vision_config": {"model_type": "clip_vision_model", **WIDE}}
    configs["text_config"] = {**SIZE, "model_type": "llama", "intermediate_size": 48, "vocab_size": 64}
    model = lively("LlavaForConditionalGeneration", {**configs, "image_token_index": 63})
    words = torch.tensor([[1, *[63] * 16, 5, 6]])
    wanted = model(input_ids=words, pixel_values=some_images(1)).logits
    whole = zoo.reduce(model, method="clsattn", keep=1.0, reduce_at=1)
    assert torch.equal(whole(input_ids=words, pixel_values=some_images(1)).logits, wanted)
    unmerged = zoo.reduce(model, method="clsattn", keep=0.5, reduce_at=1, unmerge=True)
    assert not torch.equal(unmerged(input_ids=words, pixel_values=some_images(1)).logits, wanted)
    half = zoo.reduce(unmerged, method="clsattn", keep=0.5, reduce_at=1)  # of what it was told before nothing stays
    fewer = torch.tensor([[1, *[63] * 8, 5, 6]])
    answer = half(input_ids=fewer, pixel_values=some_images(1)).logits
    assert not torch.allclose(answer[:, -1], wanted[:, -1], atol=1e-4)


def test_a_dpt_head_runs_unchanged():
    stages = {"out_features": ["stage1", "stage3"], "reshape_hidden_states": False}
    config = transformers.DepthAnythingConfig(
        backbone_config={"model_type": "dinov2", **DINOV2, **stages}, patch_size=8, reassemble_hidden_size=32,
        reassemble_factors=[2, 1], neck_hidden_sizes=[8, 16], fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    model, images = transformers.DepthAnythingForDepthEstimation(config).eval(), some_images()
    wanted = model(images).predicted_depth
    assert torch.equal(zoo.reduce(model, method="rankmerge", keep=1.0)(images).predicted_depth, wanted)
    half = zoo.reduce(model, method="rankmerge", keep=0.5, reduce_at=1)
    found = half(images, output_hidden_states=True)
    assert found.predicted_depth.shape == wanted.shape
    assert not torch.equal(found.predicted_depth, wanted)
    assert [state.shape[1] for state in found.hidden_states] == [17] * 4
    half.backbone.config.reshape_hidden_states = True
    assert half.backbone(images).feature_maps[1].shape == (2, 32, 4, 4)
    nn.init.ones_(model.backbone.layernorm.bias)
    pruned = zoo.reduce(model.backbone, method="clsattn", keep=0.5, reduce_at=1)(images, missing="zeros")
    assert (pruned.feature_maps[1] == 0).all(dim=1).sum(dim=(1, 2)).tolist() == [8, 8]


@pytest.mark.parametrize("name", ["clip_vit_s14_rankmerge60", "local-dir"])
def test_a_pushed_folder_opens_in_sentence_transformers(name: str, tmp_path: Path):
    """With embed's vectors, of pictures that are turned by EXIF or have 16 bits, and of texts."""
    if name == "local-dir":
        tower = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3).eval()  # a classifier
        timm.models.save_for_hf(zoo.reduce(tower, method="tome", keep=0.5), tmp_path / "own", safe_serialization=True)
        name = f"local-dir:{tmp_path}/own"
    flags = ["--format", "sentence-transformers", "--folder", str(tmp_path / "out")]
    assert main(["push", "--model", name, "--to", "me/it", *flags]) == 0
    model = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True, device="cpu")
    turned = Image.Exif()
    turned[274] = 6
    deep = pixels((40, 50)).astype(np.uint16) * 256
    images, contents = list[Image.Image](), list[PictureFile]()
    for image in (Image.fromarray(pixels((40, 50, 3))), Image.fromarray(deep)):
        image.save(sink := io.BytesIO(), "png", exif=turned)
        images.append(Image.open(sink))
        contents.append(PictureFile("", content=sink.getvalue()))
    encoder = Encoder(Setup.of(name, **({"method": "tome", "keep": 0.5} if "local-dir" in name else {})))
    wanted = encoder.pictures(torch.from_numpy(stack(prepare(contents, encoder.transform).items)))
    np.testing.assert_allclose(model.encode(images), wanted, atol=1e-5)
    assert model.get_embedding_dimension() == wanted.shape[1]
    if model.supports("text"):
        texts = ["a photo of a dress", "a photo of a bag"]
        np.testing.assert_allclose(model.encode(texts), encoder.texts(texts)[0], atol=1e-5)
        model.save_pretrained(str(tmp_path / "again"))
        again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
        np.testing.assert_array_equal(again.encode(images), model.encode(images))
    with pytest.raises(ValueError, match=r"open pictures with|'text' is not supported"):
        model.encode(["photo.jpg"])
    own, remote = str(tmp_path / "out"), {"trust_remote_code": True}
    processor = transformers.AutoProcessor.from_pretrained(own, **remote)
    prepared = processor(images=images)
    assert torch.equal(processor(images=images[0])["pixel_values"], prepared["pixel_values"][:1])
    features = transformers.AutoModel.from_pretrained(own, **remote).get_image_features(**prepared)
    np.testing.assert_allclose(F.normalize(features).numpy(), wanted, atol=1e-5)
