"""What is learnt when prompts are tuned: text tokens, visual tokens, and what couples them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.clip import ClipParts, class_features
from zoo.prompted_text import PromptedText
from zoo.prompts import CoupledPrompts, Prompts, VisualPrompts
from zoo.tune_config import TuneConfig
from zoo.vit import ReducedViT


class PromptLearner(nn.Module):
    """Everything that is learnt; whatever else it needs is frozen and not part of its state.

    Attributes:
        text: class names behind learned tokens, None where the text isn't tuned.
        visual: learned visual tokens, None where the images aren't.
        fixed: (classes, D) unit text features where the text isn't tuned.
    """

    fixed: Tensor

    def __init__(
        self,
        vit: ReducedViT,
        parts: ClipParts,
        classes: Sequence[str],
        templates: Sequence[str],
        config: TuneConfig,
    ) -> None:
        """Begin, by the recipe's seed.

        Args:
            vit: the image tower.
            parts: text tower and tokenizer.
            classes: names.
            templates: prompts that the text features are made of where they aren't tuned.
            config: recipe.

        Raises:
            ValueError: what ``PromptedText`` refuses, or more depth than the image tower has.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        device = next(vit.parameters()).device
        self.text: PromptedText | None = None
        self.visual: Prompts | None = None
        if "v" in config.tokens and config.depth > len(vit.blocks):
            raise ValueError(f"depth={config.depth}: the image tower has {len(vit.blocks)} blocks")
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
        else:
            fixed = class_features(parts.model, parts.tokenizer, classes, templates)
            self.register_buffer("fixed", fixed.clone().to(device), persistent=False)
        if self.text is not None and config.tokens == "vt" and config.coupled:
            self.visual = CoupledPrompts(self.text.context, vit.embed_dim, generator)
        elif "v" in config.tokens:
            free = VisualPrompts(
                config.depth, config.count, vit.embed_dim, device=device, dtype=torch.float32
            )
            drawn = 0.02 * torch.randn(free.tokens.shape, generator=generator)
            free.tokens.data.copy_(drawn)
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
