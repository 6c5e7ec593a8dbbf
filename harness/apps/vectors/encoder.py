"""A tower as embeddings are made with it: pictures and texts to unit vectors, and what decides them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.apps.setup import Setup, make_runtime
from harness.models.towers import no_text
from harness.records.conditions import DTYPES
from zoo.core.files import fingerprint, weights_digest
from zoo.loading.clip import UnseenWordsError

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the description of a function


class Encoded(NamedTuple):
    """Embeddings (n, D) float32 of unit length, and why some rows mean nothing, by position.

    The embeddings are None if no row means anything.
    """

    features: NDArray[np.float32] | None
    wrong: dict[int, str]


class Encoder:
    """A tower with its reduction on a device, in its precision; the text tower, if any, stays in float32.

    Attributes:
        width: D, of the embeddings.
        weights: fingerprint of the image tower. reducer: digest of the method's own weights, if any.
        preprocessing: of pictures, in words.
        optimised: whether the tower runs as ``zoo.optimize`` makes it; it refuses those where it can't.
    """

    def __init__(self, setup: Setup, *, random_weights: bool = False, device: str = "cpu") -> None:
        """Load the tower; raise what ``Setup.load`` does."""
        tower = setup.load(random_weights=random_weights)
        self.tower, self.setup, self.random_weights, self.device = tower, setup, random_weights, device
        self.weights = fingerprint(tower.vit)
        own = {name: value for name, value in tower.vit.state_dict().items() if name.startswith("reducer.")}
        self.reducer = weights_digest(own) if own else None
        self.preprocess = tower.preprocess
        self.preprocessing = " ".join(_ADDRESS.sub("", repr(tower.preprocess)).split())
        if tower.clip is not None:
            tower.clip.model.text.to(device)
        vit, why = make_runtime(tower.vit.to(device).eval(), setup.dtype)
        self.vit: nn.Module = vit
        self.optimised = not why
        self.width = self._forward(torch.zeros(1, 3, *tower.vit.input_size)).shape[1]

    def release(self) -> None:
        """Take the image tower off the device; nothing is embedded any more."""
        self.vit = nn.Identity()
        self.tower.vit.cpu()

    def require_text(self) -> None:
        """Refuse a tower without a text tower."""
        if self.tower.clip is None:
            raise no_text(self.tower)

    @property
    def text_weights(self) -> str:
        """Digest of the text tower's weights."""
        assert self.tower.clip is not None
        return weights_digest(self.tower.clip.model.text.state_dict())

    def pictures(self, pixels: Tensor) -> NDArray[np.float32]:
        """Embed pictures (n, C, H, W) as unit vectors (n, D).

        Raises:
            ValueError: too little memory, or the tower overflows.
        """
        try:
            features = self._forward(pixels)
        except torch.OutOfMemoryError as error:
            half = max(1, len(pixels) // 2)
            raise ValueError(
                f"out of memory on {self.device} with --batch {len(pixels)}: try --batch {half}"
            ) from error
        return _unit(features, self.setup.dtype)

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Embed texts in the joint space; a text is cut to what the tower reads.

        Raises:
            ValueError: there is no text tower.
        """
        self.require_text()
        clip = self.tower.clip
        assert clip is not None
        rows: dict[int, Tensor] = {}
        wrong = {place: "the line is empty" for place, text in enumerate(texts) if not text}
        for place, text in enumerate(texts):
            if text:
                rows[place] = clip.tokenizer([text])
        try:
            return self._encoded(rows, wrong, len(texts))
        except UnseenWordsError:
            pass  # of which texts, each by itself says
        for place, row in list(rows.items()):
            try:
                self._encoded({0: row}, {}, 1)
            except UnseenWordsError as error:
                wrong[place] = str(error)
                del rows[place]
        return self._encoded(rows, wrong, len(texts))

    @torch.inference_mode()
    def _encoded(self, rows: dict[int, Tensor], wrong: dict[int, str], count: int) -> Encoded:
        """Embed token ids (1, L) by position; the other positions get some of these, whose result means nothing."""
        if not rows:
            return Encoded(None, wrong)
        assert self.tower.clip is not None
        some = next(iter(rows.values()))
        tokens = torch.cat([rows.get(place, some) for place in range(count)])
        features = self.tower.clip.model.encode_text(tokens.to(self.device))
        return Encoded(_unit(features.float().cpu(), "float32"), wrong)

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> Tensor:
        dtype = torch.float32 if self.optimised else DTYPES[self.setup.dtype]
        features: Tensor = self.vit(pixels.to(self.device, dtype))
        return features.float().cpu()


def _unit(features: Tensor, dtype: str) -> NDArray[np.float32]:
    if not features.isfinite().all():
        raise ValueError(f"embeddings overflowed in {dtype}; use --dtype bfloat16 or float32")
    unit: NDArray[np.float32] = F.normalize(features, dim=-1).numpy()
    return unit
