"""Train the embedded text tower: ``python -m tools.train_text``.

Two steps, each resumable. First the class tokens of all training images go through the frozen
tower and into a cache; then projection and text tower are fitted on them. Images: the shipped
training emoji, and canvases composed from Fashion-MNIST's training part without the items that
ship as validation. No validation or test image is ever looked at here.
"""

import argparse
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

import zoo
from harness.datasets.canvas import seeded
from harness.datasets.emoji import CATEGORIES, STYLES, SUBCATEGORIES, Emoji, EmojiCategory
from harness.datasets.fashion import CLASSES, Fashion, sample
from tools import build_fashion
from zoo.core.files import write_whole
from zoo.loading.clip import image_transform
from zoo.loading.sizes import EMBEDDED
from zoo.loading.text import CompactText, LitConfig, LitModel, tokenizer, train_lit
from zoo.loading.weights import cache_folder

log = logging.getLogger(__name__)
CONTEXT = 20
GEOMETRY = {"context_length": CONTEXT, "width": 192, "heads": 3, "layers": 3, "output_dim": 256}
FASHION_CANVASES = 12_000
EMOJI_VARIANTS = 4
SHARD = 512
STYLE_TEMPLATES = (("a flat icon of {}.", "a noto emoji of {}."), ("a 3d rendering of {}.", "a glossy 3d emoji of {}."))


class Source(NamedTuple):
    """Training images of one kind: how many, how to draw one, and its captions."""

    size: int
    draw: Callable[[int], Image.Image]
    captions: Callable[[int], list[str]]


def fashion_source(folder: Path | None) -> Source:
    """Canvases from Fashion-MNIST's training part without what ships as validation or test."""
    with tempfile.TemporaryDirectory() as scratch:
        source = folder or build_fashion.fetch(Path(scratch))
        idx = build_fashion.unpack(source, Path(scratch) / "deb")
        items, labels = build_fashion.read_part(idx, "train")
    dataset = Fashion()
    held_out = {item.tobytes() for name in ("val", "test") for item in dataset.items(name)}
    free = np.array([i for i, item in enumerate(items) if item.tobytes() not in held_out])
    items, labels = items[free], labels[free]

    def position(index: int) -> int:
        return int(np.random.PCG64(index).random_raw() % len(items))

    def draw(index: int) -> Image.Image:
        return sample(items, labels, position(index), seeded(77, index))[0]

    def captions(index: int) -> list[str]:
        name = CLASSES[int(labels[position(index)])]
        return [template.format(name) for template in dataset.templates]

    return Source(FASHION_CANVASES, draw, captions)


def emoji_source() -> Source:
    """The shipped training emoji, several canvases each."""
    dataset = EmojiCategory()
    members = [emoji for emoji, _ in dataset.members("train")]
    split = dataset.split("train")

    def draw(index: int) -> Image.Image:
        variant, position = divmod(index, len(split))
        return split.variant(variant)[position].image

    def captions(index: int) -> list[str]:
        position = index % len(split)
        style = position % len(STYLES)
        return emoji_captions(members[position // len(STYLES)], style, dataset.templates)

    return Source(len(split) * EMOJI_VARIANTS, draw, captions)


def emoji_captions(emoji: Emoji, style: int, templates: tuple[str, ...]) -> list[str]:
    """Describe an emoji by its names, its subcategory and its category."""
    names = {emoji.name, *(n.replace("_", " ").replace("-", " ") for n in emoji.short_names)}
    kinds = [CATEGORIES[emoji.category]]
    if emoji.subcategory in SUBCATEGORIES:
        kinds.append(SUBCATEGORIES[emoji.subcategory])
    general = [*templates[:4], *STYLE_TEMPLATES[style], *templates[4:][:style]]
    return [t.format(word) for word in (*sorted(names), *kinds) for t in general]


def features_of(source: Source, name: str, cache: Path) -> Tensor:
    """Return the class tokens of a source, (count, D) float32, from cached shards or the tower."""
    vit = timm.create_model("clip_vit_s14", pretrained=True, num_classes=0).eval()
    transform = image_transform(vit)
    vit = vit.to(torch.bfloat16)
    parts = []
    for start in track(range(0, source.size, SHARD), description=f"class tokens: {name}"):
        path = cache / f"{name}-{source.size}-{start:06d}.npy"
        if not path.is_file():
            rows = range(start, min(start + SHARD, source.size))
            tokens = []
            for first in range(0, len(rows), 32):
                images = torch.stack([transform(source.draw(i)) for i in rows[first : first + 32]])
                with torch.inference_mode():
                    tokens.append(vit(images.to(torch.bfloat16)).float())
            content = io.BytesIO()
            np.save(content, torch.cat(tokens).numpy())
            write_whole(path, content.getvalue())
        parts.append(torch.from_numpy(np.load(path, allow_pickle=False)))
    return torch.cat(parts)


def main(argv: list[str] | None = None) -> int:
    """Cache features, train, write ``zoo/embedded/clip_vit_s14.text.safetensors``."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_text")
    parser.add_argument("--fashion", type=Path, help="Fashion-MNIST source, as for build_fashion")
    parser.add_argument("--output", type=Path, default=EMBEDDED / "clip_vit_s14.text.safetensors")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "train_text")
    parser.add_argument("--steps", type=int, default=LitConfig.steps)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    assert zoo.MODELS
    args.cache.mkdir(parents=True, exist_ok=True)

    sources = {"fashion": fashion_source(args.fashion), "emoji": emoji_source()}
    features = {name: features_of(source, name, args.cache) for name, source in sources.items()}
    images = torch.cat(list(features.values()))
    texts: dict[str, int] = {}
    captions = [
        [texts.setdefault(text, len(texts)) for text in source.captions(index)]
        for source in sources.values()
        for index in range(source.size)
    ]
    tokens = tokenizer(CONTEXT)(list(texts))
    share = [0.5 / s.size for s in sources.values() for _ in range(s.size)]
    config = LitConfig(steps=args.steps)
    torch.manual_seed(config.seed)
    model = LitModel(images.shape[1], CompactText(tokens.unique().tolist(), **GEOMETRY), 256)
    log.info("%d images, %d captions, %d tokens", len(images), len(texts), len(tokens.unique()))

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            log.info("step %d of %d, loss %.3f", step, config.steps, loss)

    where = {"checkpoint": args.cache / "train.pt", "on_step": report}
    train_lit(model, images, captions, tokens, config, weights=torch.tensor(share), **where)
    write(model, config, args.output)
    return 0


def write(model: LitModel, config: LitConfig, path: Path) -> None:
    """Write projection and text tower as fp16 safetensors with their geometry."""
    tensors = {f"text.{k}": v.half().contiguous() for k, v in model.text.state_dict().items()}
    tensors["visual_projection"] = model.project.weight.detach().half().contiguous()
    tensors["visual_bias"] = model.project.bias.detach().half().contiguous()
    tensors["token_ids"] = model.text.token_ids.to(torch.int32)
    tensors["logit_scale"] = model.logit_scale.detach().clone()
    facts = {"geometry": GEOMETRY, "steps": config.steps, "seed": config.seed}
    write_whole(path, save(tensors, {"text": json.dumps(facts, sort_keys=True)}))
    log.info("wrote %s, %d bytes", path.name, path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
