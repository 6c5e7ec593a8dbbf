"""Budgets whose errors are the signals of given pictures, towers with them, and a file of them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.core.adaptive import Budgets, signal
from zoo.core.digests import blocks_fingerprint
from zoo.core.host import Host
from zoo.loading.learned_files import BudgetFile


def pictures(size: int, count: int = 6) -> Tensor:
    """Return pictures from plain to detailed, in no order."""
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))
    return noise * 2.0 ** torch.tensor([0, -4, -1, -5, -2, -3])[:count].view(-1, 1, 1, 1)


def budgets_for(tower: nn.Module, images: Tensor, **changes: Any) -> dict[str, Any]:
    """Return budgets whose errors are the signals, twice as much at each lower keep rate."""
    dense = zoo.reduce(tower, method=None)
    logs = signal(dense.embed(images)).log().sort().values.tolist()
    plain = {"keeps": (1.0, 0.75, 0.5), "costs": (1.0, 0.8, 0.6), "slopes": (0, 1, 1), "intercepts": (0, 0, 0.7)}
    plain |= {"spreads": (0, 0.1, 0.1), "signals": logs, "signal_at": 0, "patches": dense.embed(images).patch_count}
    return {**plain, **changes}


def adaptive(tower: nn.Module, images: Tensor, method: str = "rankmerge", cost: float = 0.75, **changes: Any) -> Any:
    """Return a tower with budgets of these images."""
    options = {name: changes.pop(name) for name in ("reduce_at",) if name in changes}
    plain = json.loads(json.dumps(budgets_for(tower, images, **changes)))
    return zoo.reduce(tower, method=method, budgets=plain, cost=cost, **options).eval()


def file_of(tower: Host, images: Tensor, folder: Path, method: str = "rankmerge", **changes: Any) -> Path:
    """Write a file of budgets as `fit budgets` does."""
    fixed = zoo.reduce(tower, method=method, keep=0.5)
    options = {name: value for name, value in fixed.reducer.config.plain().items() if name != "keep"}
    values = {
        "budgets": Budgets(**budgets_for(tower, images)), "cost": 0.75, "bound": {}, "datasets": [], "judged": [],
        "model": "tiny", "tag": "", "method": method, "options": options,
        "weights": blocks_fingerprint(fixed.state_dict()), "version": version("clip-patchrank"),
    } | changes  # fmt: skip
    path = folder / "budgets.json"
    BudgetFile(**values).write(path)
    return path
