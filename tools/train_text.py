"""Train the embedded text tower: ``python -m tools.train_text``.

By locked-image tuning (arXiv 2111.07991): projection and text tower for a frozen image tower. First
all training images go through the frozen tower; then projection and text tower are fitted on their class tokens.
Images: the shipped training emoji, and canvases composed from Fashion-MNIST's training part without the
items that ship as validation. No validation or test image is ever looked at here.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn

from harness.datasets.packaged import CATEGORIES, CLOTHES, STYLES, Emoji, EmojiCategory, Fashion, sample_item, seeded
from tools.build_data import BUILDERS, read_fashion
from zoo.core.files import EMBEDDED, write_whole
from zoo.loading.clip import CompactText, image_transform, tokenizer

CONTEXT = 20
GEOMETRY = {"context_length": CONTEXT, "width": 192, "heads": 3, "layers": 3, "output_dim": 256}
FASHION_CANVASES = 12_000
EMOJI_VARIANTS = 4
BATCH = 32  # images that the tower sees at once
SEED = 0  # of weights, batches, captions and noise
STYLE_TEMPLATES = (("a flat icon of {}.", "a noto emoji of {}."), ("a 3d rendering of {}.", "a glossy 3d emoji of {}."))
SUBCATEGORIES = {
    "face-neutral-skeptical": "neutral or skeptical face", "face-concerned": "worried or sad face",
    "emotion": "comic symbol of emotion", "body-parts": "body part", "person": "plain person",
    "person-role": "person with a job or role", "animal-mammal": "mammal", "animal-bird": "bird",
    "plant-other": "plant", "food-fruit": "fruit", "food-vegetable": "vegetable",
    "food-prepared": "prepared food", "food-asian": "asian food", "drink": "drink",
    "place-building": "building", "transport-ground": "land vehicle",
    "sky & weather": "sky and weather", "event": "celebration", "sport": "sport equipment",
    "game": "game or toy", "clothing": "clothing", "light & video": "camera or light",
    "office": "office supply", "tool": "tool", "household": "household item",
    "transport-sign": "public information sign", "other-symbol": "other symbol",
}  # fmt: skip


class Source(NamedTuple):
    """Training images of one kind: how many, how to draw one, and its captions."""

    size: int
    draw: Callable[[int], Image.Image]
    captions: Callable[[int], list[str]]


def fashion_source(folder: Path | None) -> Source:
    """Canvases from Fashion-MNIST's training part without what ships as validation or test."""
    with tempfile.TemporaryDirectory() as scratch:
        items, labels = read_fashion(folder or BUILDERS["fashion"].fetch(Path(scratch)))["train"]
    dataset = Fashion()
    held_out = {item.tobytes() for name in ("val", "test") for item in dataset.items[name]}
    free = np.array([i for i, item in enumerate(items) if item.tobytes() not in held_out])
    items, labels = items[free], labels[free]

    def position(index: int) -> int:
        return int(np.random.PCG64(index).random_raw() % len(items))

    def draw(index: int) -> Image.Image:
        return sample_item(items, labels, position(index), seeded(77, index))[0]

    def captions(index: int) -> list[str]:
        name = CLOTHES[int(labels[position(index)])]
        return [template.format(name) for template in dataset.templates]

    return Source(FASHION_CANVASES, draw, captions)


def emoji_source() -> Source:
    """The shipped training emoji, several canvases each."""
    dataset = EmojiCategory()
    members = dataset.members("train")
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


def features_of(source: Source, name: str) -> Tensor:
    """Return the class tokens of a source, (count, D) float32."""
    vit = timm.create_model("clip_vit_s14", pretrained=True, num_classes=0).eval()
    transform = image_transform(vit)
    vit, tokens = vit.to(torch.bfloat16), []
    for first in track(range(0, source.size, BATCH), description=f"class tokens: {name}"):
        rows = range(first, min(first + BATCH, source.size))
        images = torch.stack([transform(source.draw(row)) for row in rows])
        with torch.inference_mode():
            tokens.append(vit(images.to(torch.bfloat16)).float())
    return torch.cat(tokens)


class LitModel(nn.Module):
    """What is trained: projection of the class token, text tower, logit scale."""

    def __init__(self, dim: int, text: CompactText, features: int) -> None:
        """Build for class tokens of width ``dim`` and a joint space of width ``features``."""
        super().__init__()
        self.project = nn.Linear(dim, features)
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def train_lit(
    model: LitModel,
    images: Tensor,
    captions: Sequence[Sequence[int]],
    tokens: Tensor,
    weights: Tensor,
    *,
    steps: int,
    batch: int = 512,
    peak: float = 1e-3,
    warmup: int = 100,
) -> list[float]:
    """Fit projection and text tower with a contrastive loss over sets of captions; return the loss of each step.

    ``images`` are class tokens (n, D), ``captions`` the rows of ``tokens`` (m, L) that describe each, ``weights`` (n,)
    how often it is drawn. In a batch, an image and a caption are a positive pair whenever the caption is one of the
    image's, not only where they were drawn together; targets are spread evenly over positives. AdamW's rate grows to
    its ``peak`` over the ``warmup`` and falls to zero as a cosine. Features have noise of a tenth of their spread.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    # Matrices alone decay: no biases, norms, tables or the scale.
    groups: dict[float, list[nn.Parameter]] = {0.05: [], 0.0: []}  # by the decay
    for name, parameter in model.named_parameters():
        groups[0.05 if parameter.ndim >= 2 and "embedding" not in name else 0.0].append(parameter)
    optimiser = torch.optim.AdamW([{"params": own, "weight_decay": decay} for decay, own in groups.items()], lr=peak)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    spread, member = images.std(dim=0) * 0.1, [torch.tensor(list(own)) for own in captions]
    generator, losses = torch.Generator(), list[float]()
    for step in track(range(steps), description="text tower"):
        generator.manual_seed(SEED * 1_000_003 + step + 500_000)
        rows = torch.multinomial(weights, batch, replacement=True, generator=generator)
        generator.manual_seed(SEED * 1_000_003 + step)
        noise = torch.randn(len(rows), images.shape[1], generator=generator) * spread
        own = [member[int(row)] for row in rows]
        texts = torch.stack([c[torch.randint(len(c), (), generator=generator)] for c in own]).unique()
        positive = torch.stack([torch.isin(texts, choices) for choices in own]).float()
        image = F.normalize(model.project(images[rows] + noise), dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            text_features = model.text(tokens[texts])
        text_features = F.normalize(text_features.float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100.0) * image @ text_features.T
        sides = ((logits, positive), (logits.T, positive.T))
        loss = torch.stack([F.cross_entropy(own, each / each.sum(dim=1, keepdim=True)) for own, each in sides]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train and write ``zoo/embedded/clip_vit_s14.text.safetensors``."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_text")
    parser.add_argument("--fashion", type=Path, help="folder with Fashion-MNIST's .deb")
    parser.add_argument("--output", type=Path, default=EMBEDDED / "clip_vit_s14.text.safetensors")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    sources = {"fashion": fashion_source(args.fashion), "emoji": emoji_source()}
    images = torch.cat([features_of(source, name) for name, source in sources.items()])
    texts: dict[str, int] = {}
    captions = [
        [texts.setdefault(text, len(texts)) for text in source.captions(index)]
        for source in sources.values()
        for index in range(source.size)
    ]
    tokens = tokenizer(CONTEXT)(list(texts))
    weights = torch.tensor([0.5 / source.size for source in sources.values() for _ in range(source.size)])
    torch.manual_seed(SEED)
    model = LitModel(images.shape[1], CompactText(tokens.unique().tolist(), **GEOMETRY), 256)
    print(f"{len(images)} images, {len(texts)} captions, {len(tokens.unique())} tokens")
    losses = train_lit(model, images, captions, tokens, weights, steps=args.steps)
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
    tensors = {f"text.{k}": v.half().contiguous() for k, v in model.text.state_dict().items()}
    tensors["visual_projection"] = model.project.weight.detach().half().contiguous()
    tensors["visual_bias"] = model.project.bias.detach().half().contiguous()
    tensors["token_ids"] = model.text.token_ids.to(torch.int32)
    tensors["logit_scale"] = model.logit_scale.detach().clone()
    metadata = {"geometry": GEOMETRY, "steps": args.steps, "seed": SEED}
    write_whole(args.output, save(tensors, {"text": json.dumps(metadata, sort_keys=True)}))
    print(f"wrote {args.output}, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
