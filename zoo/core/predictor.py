"""Small networks that predict importance from the tokens at the reduction point, and their files.

Networks other than mixers work on any grid (``dynamic_img_size``).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.fx
from safetensors import safe_open
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from zoo.core.files import load_learned, read_learned
from zoo.core.messages import expected, tower_name


def require_patches(patches: Tensor, count: int, refusal: str) -> Tensor:
    """Return ``patches`` (B, n, D); with another n raise ValueError of ``refusal``, {} being n."""
    if patches.shape[1] != count:
        raise ValueError(refusal.format(patches.shape[1]))
    return patches


torch.fx.wrap("require_patches")  # one call in a graph: the shape is not known there


class Network(nn.Module):
    """What a predictor can be.

    Built from the tokens' width ``dim``, its own ``width`` and the ``grid`` of the tower, it maps
    normalised patches (B, n, D), class token (B, 1, D) and the image's grid to importance (B, n).

    Attributes:
        any_subset: whether it scores grids with patches missing. Where it does, permuting the
            patches permutes the importance: positions are in the tokens already.
    """

    any_subset: ClassVar[bool] = True


class TokenLinear(Network):
    """Score each token by one linear function of it; the floor for all others."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches."""
        scores: Tensor = self.score(patches).squeeze(-1)
        return scores


class TokenMlp(Network):
    """Score each token from itself, the class token and the mean token."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width, **dd)
        self.context = nn.Linear(2 * dim, width, **dd)
        self.hidden = nn.Linear(width, width, **dd)
        self.score = nn.Linear(width, 1, **dd)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches."""
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        scores: Tensor = self.score(self.act(self.hidden(x))).squeeze(-1)
        return scores


class TokenTransformer(Network):
    """Let patches and class token attend to one another in one encoder block, then score each.

    Its heads are 32 channels wide if that divides ``width``, else it has one.
    """

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        heads = width // 32 if width % 32 == 0 else 1
        self.token = nn.Linear(dim, width, **dd)
        self.norm1 = nn.LayerNorm(width, **dd)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True, **dd)
        self.norm2 = nn.LayerNorm(width, **dd)
        self.mlp = Mlp(width, 4 * width, **dd)
        self.norm = nn.LayerNorm(width, **dd)
        self.score = nn.Linear(width, 1, **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches."""
        x = self.token(torch.cat((cls, patches), dim=1))
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        scores: Tensor = self.score(self.norm(x[:, 1:])).squeeze(-1)
        return scores


class GridConv(Network):
    """Score each token from itself, the class token, the mean token and its neighbours."""

    any_subset = False

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width, **dd)
        self.context = nn.Linear(2 * dim, width, **dd)
        self.mix1 = nn.Conv2d(width, width, 5, padding=2, groups=width, **dd)
        self.hidden = nn.Linear(width, width, **dd)
        self.mix2 = nn.Conv2d(width, width, 5, padding=2, groups=width, **dd)
        self.score = nn.Linear(width, 1, **dd)
        self.act = nn.GELU()

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches, all N of them in grid order."""
        refusal = (
            f"a conv predictor needs the whole grid of {grid[0]} x {grid[1]} patches, got {{}}; "
            "use arch='mlp', 'transformer' or 'linear' after a reduction"
        )
        patches = require_patches(patches, grid[0] * grid[1], refusal)
        context = torch.cat((cls, patches.mean(dim=1, keepdim=True)), dim=-1)
        x = self.act(self.token(patches) + self.context(context))
        x = x + self._mix(self.mix1, x, grid)
        x = self.act(self.hidden(x))
        x = x + self._mix(self.mix2, x, grid)
        scores: Tensor = self.score(self.act(x)).squeeze(-1)
        return scores

    @staticmethod
    def _mix(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int]) -> Tensor:
        mixed: Tensor = conv(x.transpose(1, 2).unflatten(2, grid))
        return mixed.flatten(2).transpose(1, 2)


class Mixer(Network):
    """One MLP-Mixer block: channel MLP, then token MLP, each with a residual (section 3.3).

    With ``width`` the tower's own it is the paper's network; a narrower one projects the tokens
    first. An MLP is FC, LayerNorm, GELU, FC, four times as wide inside over channels and half the
    channels over tokens, as in MLP-Mixer: that gives the paper's 4.9M parameters. The score is the
    mean over channels. The token MLP is made for the N of ``grid``.
    """

    any_subset = False

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.patches = grid[0] * grid[1]
        self.token: nn.Module = nn.Identity() if width == dim else nn.Linear(dim, width, **dd)
        self.channel_mlp = _mlp(width, 4 * width, **dd)
        self.token_mlp = _mlp(self.patches, max(1, width // 2), **dd)

    def forward(self, patches: Tensor, cls: Tensor, grid: tuple[int, int]) -> Tensor:
        """Score the patches, all N of them in grid order."""
        refusal = (
            f"this mixer was made for {self.patches} patches, got {{}}; use a predictor with "
            "arch='conv', 'mlp', 'transformer' or 'linear', which work on every grid"
        )
        x: Tensor = self.token(require_patches(patches, self.patches, refusal))
        x = x + self.channel_mlp(x)
        x = x + self.token_mlp(x.transpose(1, 2)).transpose(1, 2)
        return self._score(x)

    def _score(self, x: Tensor) -> Tensor:
        return x.mean(dim=-1)


class PooledMixer(Mixer):
    """The form of the authors' released script: channels averaged to ``width``, linear score."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int], **dd: Any) -> None:
        super().__init__(width, width, grid, **dd)
        self.token = nn.AdaptiveAvgPool1d(width)
        self.score = nn.Linear(width, 1, **dd)

    def _score(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(x).squeeze(-1)
        return scores


def _mlp(width: int, hidden: int, **dd: Any) -> nn.Sequential:
    first, last = nn.Linear(width, hidden, **dd), nn.Linear(hidden, width, **dd)
    return nn.Sequential(first, nn.LayerNorm(hidden, **dd), nn.GELU(), last)


ARCHITECTURES: dict[str, type[Network]] = {
    "conv": GridConv,
    "linear": TokenLinear,
    "mixer": Mixer,
    "mlp": TokenMlp,
    "pooledmixer": PooledMixer,
    "transformer": TokenTransformer,
}


def architecture(arch: str) -> type[Network]:
    """Return the network called ``arch``; raise ValueError if there is none."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch={arch!r}: {expected(arch, ARCHITECTURES)}")
    return ARCHITECTURES[arch]


def require_any_subset(arch: str, block: int) -> None:
    """Refuse an architecture that can't score before ``block``, where patches are gone already."""
    if not architecture(arch).any_subset:
        able = ", ".join(name for name, network in ARCHITECTURES.items() if network.any_subset)
        raise ValueError(
            f"arch={arch!r} scores whole grids only, and with rescore=True patches are gone before "
            f"block {block}: expected one of {able}, or rescore=False"
        )


class Predictor(nn.Module):
    """Normalise the tokens that enter the reduction point and score the patches."""

    def __init__(self, arch: str, dim: int, width: int, grid: tuple[int, int], device: Any, dtype: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.net = architecture(arch)(dim, width, grid, device=device, dtype=dtype)

    def forward(self, x: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """Map tokens x (B, prefix + n, D), class token first, to importance (B, n) float32.

        Where a tower has no prefix token, the mean patch token stands in for the class token.
        """
        x = self.norm(x)
        cls = x[:, :1] if prefix else x.mean(dim=1, keepdim=True)
        scores: Tensor = self.net(x[:, prefix:], cls, grid)
        return scores.float()


REMOVE = "remove"  # of ``zoo.ranking.golden.ACTIONS`` the one that most methods rank for

# predictor=: a file, or one for each block
PredictorPaths = str | Path | Sequence[str | Path] | None


_KIND = "predictor"
_FIT = "fit one with: patchrank fit predictor"


@dataclass(frozen=True, kw_only=True)
class PredictorFile:
    """A saved predictor: weights in safetensors, provenance in its metadata.

    It was fitted at reduction point ``block`` to the tower of dense timm name ``model``, weight
    ``tag`` and ``blocks_fingerprint`` ``weights``, None in files that serve any of this name.
    ``options`` are those that shape the network (``arch``, ``width``), ``action`` that of the golden
    rankings: what it ranks patches for.
    """

    path: Path
    model: str
    tag: str
    block: int
    options: dict[str, Any]
    weights: str | None = None
    action: str = REMOVE
    recipe: dict[str, Any] | None = None  # fields of ``FitConfig``
    provenance: dict[str, Any] | None = None  # facts about the rankings

    @classmethod
    def read(cls, path: Path) -> "PredictorFile":
        """Read the facts of ``path``; raise as ``read_learned`` does."""
        file = read_learned(path, _KIND, cls, _FIT)
        with safe_open(path, framework="pt") as opened:
            count = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        width = file.options.get("width", 1)
        if type(width) is not int or not 0 < width <= count:
            raise ValueError(
                f"{str(path)!r} holds no {_KIND}: its {count} weights aren't those of width {width!r}; {_FIT}"
            )
        return file

    def fill(self, options: dict[str, Any]) -> None:
        """Add the network's shape to ``options``.

        Raises:
            ValueError: they ask for another network.
        """
        for key, value in self.options.items():
            option = options.setdefault(key, value)
            if option != value:
                shape = {**self.options, key: option}
                raise ValueError(
                    f"{key}={option!r}: the predictor {str(self.path)!r} has {key}={value!r}; fit "
                    f"one with: {self.command(shape)} --out PATH, "
                    "and give PATH as predictor"
                )

    def command(self, shape: Mapping[str, Any], **other: Any) -> str:
        """Return the command that fits one of another ``shape``, see ``fit_command``, or other facts."""
        facts: dict[str, Any] = {"model": self.model, "tag": self.tag, "block": self.block, "action": self.action}
        return fit_command(**facts | other, shape=shape)

    def require_action(self, action: str) -> None:
        """Raise ValueError unless this ranks patches for the same action."""
        if self.action != action:
            raise ValueError(
                f"predictor {str(self.path)!r} was fitted to rankings of action={self.action!r}, this model asks for "
                f"{action!r}; fit one with: {self.command(self.options, action=action)}"
            )

    def require_name(self, model: str, tag: str) -> None:
        """Raise ValueError unless this was fitted to the tower of this timm name and weight tag."""
        if (self.model, self.tag) != (model, tag):
            raise ValueError(
                f"predictor {str(self.path)!r} was fitted to {tower_name(self.model, self.tag)}, "
                f"not to {tower_name(model, tag)}"
            )

    def require_weights(self, weights: str) -> None:
        """Raise ValueError if this was fitted to a tower of another ``blocks_fingerprint``."""
        if self.weights not in (None, weights):
            raise ValueError(
                f"the predictor {str(self.path)!r} was fitted to "
                f"{tower_name(self.model, self.tag)} with weights {self.weights}, these are "
                f"{weights}; fit one to them with: "
                f"{self.command(self.options)}"
            )

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Load the weights, named as in ``Predictor``, behind ``prefix``."""
        loaded = load_learned(self.path, _KIND, f"fit one anew with: {self.command(self.options)}")
        return {prefix + name: tensor for name, tensor in loaded.items()}


def predictor_name(model: str, tag: str, block: int, action: str = REMOVE) -> str:
    """Return the file name of a predictor for a tower (dense timm name, weight tag), block and action."""
    # Names of other libraries' towers may hold slashes and colons.
    tower = re.sub(r"[^\w.,-]+", "-", tower_name(model, tag))
    role = "patchrank" if action == REMOVE else "rankmerge"
    return f"{tower}.{role}.block{block}.safetensors"


def fit_command(model: str, tag: str, block: int, shape: Mapping[str, Any], action: str = REMOVE) -> str:
    """Return the command that fits a predictor; what ``shape`` leaves out is the default."""
    flags = "".join(f" --{key} {shape[key]}" for key in ("arch", "width") if key in shape)
    flags += "" if action == REMOVE else f" --action {action}"
    fit = "patchrank fit predictor"
    return f"{fit} --model {tower_name(model, tag)} --block {block}{flags} --dataset NAME"


def one_each(files: Sequence[PredictorFile], blocks: Sequence[int]) -> tuple[PredictorFile, ...]:
    """Put predictors in the order of the blocks before which a model scores.

    Raises:
        ValueError: a block has none or two of them, or one was fitted at another block.
    """
    places = f"block{'s'[: len(blocks) - 1]} {', '.join(map(str, blocks))}"
    if not files:
        raise ValueError(f"no predictor was given; expected one for {places}")
    by_block: dict[int, PredictorFile] = {}
    for one in files:
        if one.block in by_block:
            both = f"{str(by_block[one.block].path)!r} and {str(one.path)!r}"
            raise ValueError(f"the predictors {both} were both fitted at block {one.block}; expected one for {places}")
        by_block[one.block] = one
    missing = [block for block in blocks if block not in by_block]
    mend = "leave it out"
    if missing:
        like = files[0]
        mend = f"fit one with: {like.command(like.options, block=missing[0])}"
    for one in files:
        if one.block not in blocks:
            raise ValueError(
                f"the predictor {str(one.path)!r} was fitted at block {one.block}, this model "
                f"scores before {places}; {mend}"
            )
    if missing:
        raise ValueError(
            f"this model scores before {places}, and none of the given predictors was fitted at "
            f"block {missing[0]}; {mend}"
        )
    return tuple(by_block[block] for block in blocks)


def read_predictors(paths: str | Path | Sequence[str | Path]) -> list[PredictorFile]:
    """Read what ``predictor=`` names, one file or several, each as ``PredictorFile.read`` does."""
    several = [paths] if isinstance(paths, (str, Path)) else paths
    return [PredictorFile.read(Path(path)) for path in several]
