"""Weights of open_clip, loaded through our path, give its features, for every size and tag."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from lively import lively
from open_clip.model import CLIP
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from timm.layers import to_2tuple
from torch import Tensor, nn

import zoo
from zoo.loading.clip import image_transform
from zoo.loading.open_clip import from_open_clip, load_open_clip
from zoo.loading.sizes import SIZES

MODELS = {size: spec.open_clip for size, spec in SIZES.items() if spec.open_clip}
PAIRS = [(size, tag) for size in MODELS for tag in SIZES[size].tags]
# One tag of each size and activation: nothing else of a tag reaches the features.
DIFFERENT = list({(size, SIZES[size].tags[tag].quick_gelu): (size, tag) for size, tag in PAIRS}.values())
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}


@pytest.mark.parametrize(("size", "tag"), DIFFERENT)
@torch.no_grad()
def test_features_are_open_clips(size: str, tag: str, tmp_path: Path):
    """Exact with the activation of the tag, and clearly different with the other one; narrow towers of 2 blocks."""
    torch.manual_seed(3)
    config = open_clip.get_model_config(MODELS[size])
    vision = {**config["vision_cfg"], "width": 64, "layers": 2, "head_width": 16}
    quick = bool(get_pretrained_cfg(MODELS[size], SIZES[size].tags[tag].open_clip).get("quick_gelu"))
    same, other = (CLIP(config["embed_dim"], vision, TEXT, quick_gelu=q).eval() for q in (quick, not quick))
    lively(same, 0.05)
    other.load_state_dict(same.state_dict(), assign=True)
    file = tmp_path / "open_clip.safetensors"
    save_file({k: v.contiguous() for k, v in same.state_dict().items()}, file)
    options = {"pretrained_cfg_overlay": {"file": str(file)}, "embed_dim": 64, "depth": 2, "num_heads": 4}
    model = timm.create_model(f"clip_vit_{size}.{tag}", pretrained=True, **options).eval()
    images = torch.randn(1, 3, 224, 224)
    features = model(images)
    assert torch.allclose(features, same.encode_image(images), atol=1e-4)
    assert (features - other.encode_image(images)).abs().max() > 1e-3


ALONE = """
import sys

class Refusal:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in {"open_clip", "scipy", "pyarrow", "rich", "jinja2", "matplotlib", "transformers"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refusal)
import timm, torch, zoo
tower = timm.create_model("vit_tiny_patch16_224", depth=4, img_size=64)
print(*zoo.reduce(tower, method="rankmerge", keep=0.6)(torch.ones(2, 3, 64, 64)).shape)
"""
TOWER = """
import open_clip.transformer, zoo
tower = open_clip.transformer.VisionTransformer(32, 8, 32, 2, 2, 2.0)
print(type(zoo.reduce(tower, method="tome", keep=0.5)).__name__)
"""
BOTH = """
print("{NAME}" in open_clip.list_models(), type(open_clip.get_tokenizer("clip_vit_s14")).__name__)
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (ALONE, "2 1000"),
        (TOWER, "ReducedOpenClip"),
        (f"import zoo, open_clip{BOTH}", "True EmbeddedTokenizer"),
        (f"import open_clip, zoo{BOTH}", "True EmbeddedTokenizer"),
        (f"import zoo; zoo.from_open_clip; import open_clip{BOTH}", "True EmbeddedTokenizer"),
    ],
)
def test_zoo_needs_no_open_clip_and_registers_with_it_in_any_order(code: str, printed: str):
    code = code.replace("{NAME}", NAME)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == printed, done.stderr


NAME = "clip_vit_b32_clsattn50"


@torch.no_grad()
def test_one_checkpoint_in_the_hubs_cache_gives_open_clip_and_us_the_same_models(small_clip):
    """What open_clip made of it is made again when the weights in the cache are others."""
    original, name = small_clip.original(), f"{NAME}.openai"
    file = small_clip.cached(original)
    theirs = open_clip.create_model(name, pretrained="openai").eval()
    ours, dense = zoo.create_clip(name), zoo.create_clip("clip_vit_b32.openai").model
    images, texts = torch.randn(2, 3, 224, 224), ["a photo of a cat.", "a zebra crossing"]
    words = ours.tokenizer(texts)
    for other in (name, "ViT-B-32"):
        assert torch.equal(words, open_clip.get_tokenizer(other)(texts))
    for one, other in ((theirs, ours.model), (original, dense)):
        torch.testing.assert_close(one.encode_image(images), other.encode_image(images))
        torch.testing.assert_close(one.encode_text(words), other.encode_text(words))
    assert not torch.allclose(*original.encode_text(words), atol=1e-2)
    assert dense.logit_scale.item() == 3.5
    again = zoo.reduce(dense.visual, method="clsattn", keep=0.5)
    torch.testing.assert_close(again(images), ours.model.visual(images))
    open_clip.create_model("clip_vit_b32_tome50", pretrained="openai")
    assert len(list(small_clip.open_clip.iterdir())) == 1
    os.utime(file, ns=(1, 1))
    open_clip.create_model(NAME, pretrained="openai")
    assert len(list(small_clip.open_clip.iterdir())) == 2


def test_open_clip_refuses_weights_of_another_activation(small_clip):
    match = "need another activation: give the model name 'clip_vit_b32_clsattn50.laion2b'"
    with pytest.raises(RuntimeError, match=re.escape(match)):
        open_clip.create_model(NAME, pretrained="laion2b")
    small_clip.cached(small_clip.original(quick=False), "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    model = open_clip.create_model(f"{NAME}.laion2b", pretrained="laion2b").eval()
    images = torch.randn(1, 3, 224, 224)
    ours = zoo.create_clip(f"{NAME}.laion2b").model
    torch.testing.assert_close(model.encode_image(images), ours.encode_image(images))


def test_preprocessing_is_open_clips_pixel_for_pixel(small_clip):
    ours = zoo.create_clip("clip_vit_b32_tome50", pretrained=False).preprocess
    theirs = open_clip.create_model_and_transforms("ViT-B-32")[2]
    for shape in ((97, 511), (31, 17)):
        noise = Image.fromarray(torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).numpy())
        for mode in ("RGB", "L", "P", "RGBA"):
            assert torch.equal(ours(noise.convert(mode)), theirs(noise.convert(mode))), (shape, mode)


@torch.no_grad()
def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    page = (Path(__file__).parents[2] / "docs" / "towers.md").read_text("utf-8")
    code = re.search(r"\n## open_clip\n.*?^```python\n(.*?)^```$", page, re.M | re.S).group(1)
    names: dict[str, Any] = {}
    exec(code, names)
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    ours = zoo.create_clip(names["name"])
    tokens = tokenizer(["a photo of a sneaker."])
    torch.testing.assert_close(names["features"], ours.model.encode_text(tokens, normalize=True))
    images = torch.randn(2, 3, 196, 196)
    torch.testing.assert_close(model.encode_image(images), ours.model.encode_image(images))
    with pytest.raises(ValueError, match=r"text 'a zebra crossing': .* never saw 'crossing'; use"):
        tokenizer(["a sneaker", "a zebra crossing"])
    plain = open_clip.get_tokenizer("ViT-B-16", context_length=tokenizer.context_length)
    assert torch.equal(plain(["a photo of a sneaker."]), tokens)
    assert model.encode_text(plain(["a zebra crossing"])).isnan().all()  # whoever goes around it


Patch = pytest.MonkeyPatch
SMALL_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
B16 = {"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
TRUNK = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
CONFIG = {"embed_dim": 24, "vision_cfg": B16, "text_cfg": SMALL_TEXT}
EXACT = {
    "b16": B16,
    "mlp ratio that rounds, eps": {**B16, "mlp_ratio": 1.23, "norm_kwargs": {"eps": 1e-3}},
    "tanh, no pre-norm": {**B16, "act_kwargs": {"approximate": "tanh"}, "no_ln_pre": True},
    "fixed positions, layer scale": {**B16, "pos_embed_type": "sin_cos_2d", "ls_init_value": 0.3},
    "wide image, oblong patches": {**B16, "image_size": (32, 48), "patch_size": (8, 16)},
    "image that patches don't fill": {**B16, "image_size": 37},
    "norm after pool": {**B16, "final_ln_after_pool": True},
    "avg": {**B16, "pool_type": "avg"},
    "trunk": {**TRUNK, "timm_proj": "linear"},
    "trunk with its own head": {**TRUNK, "timm_proj": ""},
    "trunk with mlp": {**TRUNK, "timm_proj": "mlp"},
    "trunk without projection": {**TRUNK, "timm_proj": "none"},
    "trunk with map": {**TRUNK, "timm_pool": "map", "timm_proj": ""},
}


def build(vision: dict[str, Any], quick: bool = False) -> Any:
    """Make an open_clip model lively: fresh biases, norms and layer scales would hide mistakes."""
    torch.manual_seed(2)
    return lively(CLIP(24, dict(vision), dict(SMALL_TEXT), quick_gelu=quick))


@pytest.mark.parametrize(("name", "quick"), [*((n, False) for n in EXACT), ("b16", True)])
@torch.no_grad()
def test_features_of_a_taken_tower_are_open_clips(name: str, quick: bool):
    vision = EXACT[name]
    model = build(vision, quick)
    tower = from_open_clip(model)
    images = torch.randn(2, 3, *to_2tuple(vision["image_size"]))
    expected = model.encode_image(images)
    assert torch.allclose(tower(images), expected, atol=1e-5)
    assert expected.std() > 0.1
    assert tower.num_classes == (0 if name == "trunk without projection" else 24)
    assert tower.reducer is None
    assert not tower.training


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_preprocessing_goes_along_if_timm_can_do_it(mode: str):
    facts = {"size": (32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    cfg = PreprocessCfg(**facts, resize_mode=mode, interpolation="bicubic")
    model = build(B16)
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=32, resize_mode="longest"))
    assert not hasattr(from_open_clip(model), "pretrained_cfg")
    model.visual.preprocess_cfg = vars(cfg)
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    ours = image_transform(from_open_clip(model))(image)
    theirs = image_transform_v2(cfg, is_train=False)(image)
    assert ours.shape == theirs.shape == (3, 32, 32)
    assert torch.equal(ours, theirs)


def block_of(model: CLIP) -> nn.Module:
    return model.visual.transformer.resblocks[0]


@pytest.mark.parametrize(("change", "match"), [
    (lambda model: setattr(block_of(model).ln_2, "eps", 0.1), "norms of several eps: [1e-05, 0.1]"),
    (lambda model: setattr(block_of(model).mlp, "gelu", nn.ReLU()), "activation ReLU"),
    ({**B16, "attentional_pool": True}, "attentional_pool: this tower pools by attention"),
    ({**B16, "pool_type": "none"}, "pool_type='none': expected one of tok, avg"),
    ({**B16, "patch_dropout": 0.5}, "patch_dropout > 0 loses patch positions"),
    ({**B16, "scale_heads": True}, "differs from timm's VisionTransformer in 'blocks.0.attn.head_scale'"),
    ({**B16, "layers": (1, 1, 1, 1), "width": 32, "head_width": 32}, "ModifiedResNet is not"),
    ({**TRUNK, "timm_proj": "", "timm_pool": ""}, "timm_pool='' hands out tokens"),
    ({**TRUNK, "timm_model_name": "test_resnet", "timm_pool": "avg"}, "ResNet is no tower that can be"),
])  # fmt: skip
def test_what_has_no_exact_counterpart_is_refused(change: Any, match: str):
    model = build(change if isinstance(change, dict) else B16)
    if not isinstance(change, dict):
        change(model)
    with pytest.raises(ValueError, match=re.escape(match)):
        from_open_clip(model)


@pytest.fixture
def theirs(monkeypatch: Patch) -> Any:
    """Make a small open_clip model, and its architecture known to open_clip as ``tiny``."""
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "tiny", CONFIG)
    monkeypatch.setitem(configs, "tiny-quickgelu", {**CONFIG, "quick_gelu": True})
    return build(B16)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def checkpoint(model: nn.Module, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


@torch.no_grad()
def test_a_file_or_folder_gives_both_towers(theirs: Any, tmp_path: Path, images: Tensor):
    file = checkpoint(theirs, tmp_path)
    (model, _, tokenizer), name = load_open_clip(f"tiny/{file}")
    assert name == f"tiny/{file.name}"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert not model.training
    tokens = tokenizer(["a cat", "a dog"])
    torch.testing.assert_close(model.encode_text(tokens), theirs.encode_text(tokens))
    assert torch.equal(model.logit_scale, theirs.logit_scale)
    # A folder that open_clip wrote.
    facts = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(facts))
    file.rename(tmp_path / "open_clip_model.safetensors")
    (model, preprocess, _), name = load_open_clip(f"local-dir:{tmp_path}")
    assert name == f"local-dir:{tmp_path.name}"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    assert preprocess(Image.new("RGB", (40, 40)))[0, 0, 0] == pytest.approx(-0.5)


@torch.no_grad()
def test_a_tag_brings_its_activation(theirs: Any, tmp_path: Path, images: Tensor, monkeypatch: Patch):
    """Loaded with plain GELU, QuickGELU's weights would give other features and no error."""
    file = str(checkpoint(theirs, tmp_path))
    quick = {"file": file, "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (1.0, 1.0, 1.0)}
    tags = {"openai": quick, "laion2b_s1": {"file": file}}
    for arch in ("tiny", "tiny-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
    other = build(B16, quick=True)
    for arch in ("tiny", "tiny-quickgelu"):
        (model, preprocess, tokenizer), _ = load_open_clip(f"{arch}/openai")
        assert torch.allclose(model.encode_image(images), other.encode_image(images), atol=1e-5)
        tokens = tokenizer(["a cat"])
        assert torch.allclose(model.encode_text(tokens), other.encode_text(tokens), atol=1e-5)
        white = preprocess(Image.new("RGB", (40, 40), "white"))
        assert torch.allclose(white[:, 0, 0], torch.tensor([0.5, 0.6, 0.7]))
    (model, *_), name = load_open_clip("tiny/LAION2B-s1")
    assert name == "tiny/laion2b_s1"
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), atol=1e-5)
    with pytest.raises(ValueError, match="use tiny/laion2b_s1"):
        load_open_clip("tiny-quickgelu/laion2b_s1")
    with pytest.raises(ValueError, match=r"weights 'opnai' of .*: did you mean 'openai'"):
        load_open_clip("tiny/opnai")


def test_files_without_usable_weights(theirs: Any, tmp_path: Path, evil: Any):
    torch.save({"state_dict": evil}, tmp_path / "evil.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.pt")
    for name, why in (("evil.pt", "could run code"), ("x.pt", "")):
        with pytest.raises(ValueError, match=rf"the weights of tiny/.* can't be used: .*{why}"):
            load_open_clip(f"tiny/{tmp_path}/{name}")
    assert not evil.mark.exists()
