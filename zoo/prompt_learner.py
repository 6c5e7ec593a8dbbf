"""What is learnt when prompts are tuned: text tokens, visual tokens, and what couples them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.clip import ClipParts, class_features
from zoo.prompt_file import PromptFile, save_prompts
from zoo.prompted_text import PromptedText
from zoo.prompts import CoupledPrompts, Prompts, VisualPrompts
from zoo.tune_config import TuneConfig
from zoo.vit import ReducedViT
from zoo.weights import blocks_fingerprint

NOISE = 0.05  # of the first visual tokens, as a share of the mean patch's size


@torch.no_grad()
def mean_patches(vit: ReducedViT, images: Tensor, depth: int) -> Tensor:
    """Return the mean patch token where visual tokens will join, (depth, D) float32.

    Args:
        vit: the image tower, without learned tokens.
        images: (n, C, H, W) some of those to learn from.
        depth: blocks that get tokens, from block 0 on.

    Raises:
        ValueError: the tower has fewer blocks.
    """
    if depth > len(vit.blocks):
        raise ValueError(f"depth={depth}: the image tower has {len(vit.blocks)} blocks")
    joined = vit._pos_embed(vit.patch_embed(images))[:, vit.num_prefix_tokens :]
    found = [joined.float().mean(dim=(0, 1))]
    tokens = vit.embed(images)
    for block in range(1, depth):
        tokens, _ = vit.advance(tokens, block - 1, block)
        found.append(tokens.patches.float().mean(dim=(0, 1)))
    return torch.stack(found)


class PromptLearner(nn.Module):
    """Everything that is learnt; whatever else it needs is frozen and not part of its state.

    Attributes:
        text: class names behind learned tokens, None where the text isn't tuned.
        visual: learned visual tokens, None where the images aren't.
        fixed: (classes, D) unit text features of the templates.
        classes: names.
        config: recipe.
    """

    fixed: Tensor

    def __init__(
        self,
        vit: ReducedViT,
        parts: ClipParts,
        classes: Sequence[str],
        templates: Sequence[str],
        config: TuneConfig,
        patches: Tensor | None,
    ) -> None:
        """Begin, by the recipe's seed.

        Visual tokens begin as the mean patch: small random ones, which normalisation makes large,
        would change the features of a pretrained tower beyond repair by a few images.

        Args:
            vit: the image tower.
            parts: text tower and tokenizer.
            classes: names.
            templates: prompts that untuned text features are made of.
            config: recipe.
            patches: (depth, D) mean patch token at the input of each block that gets visual
                tokens, see ``mean_patches``; None where no block does.

        Raises:
            ValueError: what ``PromptedText`` refuses, or more depth than the image tower has.
        """
        super().__init__()
        self.classes, self.config = tuple(classes), config
        generator = torch.Generator().manual_seed(config.seed)
        device = next(vit.parameters()).device
        self.text: PromptedText | None = None
        self.visual: Prompts | None = None
        if "t" in config.tokens:
            self.text = PromptedText(
                parts.model.text,
                parts.tokenizer,
                classes,
                count=config.count,
                depth=config.depth,
                class_specific=config.class_specific,
                init=config.init,
                generator=generator,
            )
            self.text.checkpointing = config.checkpointing
        fixed = class_features(parts.model, parts.tokenizer, classes, templates)
        self.register_buffer("fixed", fixed.clone().to(device), persistent=False)
        if patches is not None and self.text is not None and config.coupled:
            self.visual = CoupledPrompts(self.text.context, patches).to(device)
        elif patches is not None:
            noise = torch.randn(config.depth, config.count, vit.embed_dim, generator=generator)
            size = NOISE * patches.square().mean(dim=1).sqrt()
            free = VisualPrompts(*noise.shape, device=device, dtype=torch.float32)
            free.tokens.data.copy_(patches[:, None] + size[:, None, None] * noise.to(device))
            self.visual = free

    def classifier(self) -> Tensor:
        """Return the classes' text features, (classes, D) of unit length."""
        return self.fixed if self.text is None else self.text()

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameters for an optimiser, visual ones with a rate of their own."""
        text = [] if self.text is None else list(self.text.parameters())
        known = {id(parameter) for parameter in text}
        visual = [p for p in self.parameters() if id(p) not in known]
        pairs = ((text, self.config.learning_rate), (visual, self.config.visual_rate))
        return [{"params": group, "lr": rate, "most": rate} for group, rate in pairs if group]

    @property
    def parameter_count(self) -> int:
        """How many numbers are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def tensors(self, logit_scale: float) -> dict[str, Tensor]:
        """Return what ``zoo.prompt_file.save_prompts`` writes.

        Args:
            logit_scale: log of the factor on cosine similarities.
        """
        found = {"classifier": self.classifier(), "logit_scale": torch.tensor(logit_scale)}
        if self.text is not None:
            found["context"] = self.text.context
        if self.visual is not None:
            found["visual"] = self.visual()
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def save(
        self,
        path: Path,
        vit: ReducedViT,
        parts: ClipParts,
        *,
        model: str,
        tag: str,
        dataset: str,
        provenance: dict[str, Any] | None = None,
    ) -> PromptFile:
        """Write what was learned with what it belongs to, whole or not at all.

        Args:
            path: the file.
            vit: the tower that it was learned on.
            parts: as for ``zoo.tune``.
            model: dense name of the tower.
            tag: its weight tag.
            dataset: where classes and images are from.
            provenance: further JSON-able facts.
        """
        return save_prompts(
            path,
            self.tensors(parts.model.logit_scale.item()),
            model=model,
            tag=tag,
            weights=blocks_fingerprint(vit.state_dict()),
            width=vit.embed_dim,
            classes=self.classes,
            dataset=dataset,
            recipe=asdict(self.config),
            provenance={"parameters": self.parameter_count, **(provenance or {})},
        )
