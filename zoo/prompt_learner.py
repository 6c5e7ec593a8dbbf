"""What is learnt when prompts are tuned: text tokens, visual tokens, and what couples them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.clip import ClipParts, class_features
from zoo.prompted_text import PromptedText
from zoo.prompts import CoupledPrompts, Prompts, VisualPrompts
from zoo.tune_config import TuneConfig
from zoo.vit import ReducedViT

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

        Visual tokens begin near the mean patch: small random ones, which normalisation makes large,
        would turn the features of a pretrained tower upside down (cosine 0.6 to what they were on
        the embedded tower, against 0.98).

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
        if patches is not None:
            noise = torch.randn(config.depth, config.count, vit.embed_dim, generator=generator)
            scale = NOISE * patches.square().mean(dim=1).sqrt()
            begin = patches[:, None] + scale[:, None, None] * noise.to(device)
            if self.text is not None and config.coupled:
                self.visual = CoupledPrompts(self.text.context, begin).to(device)
            else:
                free = VisualPrompts(*begin.shape, device=device, dtype=torch.float32)
                free.tokens.data.copy_(begin)
                self.visual = free

    def classifier(self) -> Tensor:
        """Return the classes' text features, (classes, D) of unit length."""
        return self.fixed if self.text is None else self.text()

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
