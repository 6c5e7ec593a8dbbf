"""A tower's fingerprint follows its weights and nothing else."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import zoo
from zoo.weights import fingerprint

Build = Callable[..., nn.Module]


@pytest.fixture
def tower(tiny: Build) -> zoo.ReducedViT:
    """A tower whose weights lost nothing to float16."""
    return tiny("clip_vit_b16", depth=2).half().float()


def test_is_16_hex_digits_and_the_same_for_a_copy(tower: nn.Module):
    digits = fingerprint(tower)
    assert len(digits) == 16
    int(digits, 16)
    assert fingerprint(copy.deepcopy(tower)) == digits == fingerprint(tower.eval())


def test_is_one_in_every_precision_that_loses_nothing(tower: nn.Module):
    digits = fingerprint(tower)
    assert fingerprint(copy.deepcopy(tower).half()) == digits
    assert fingerprint(copy.deepcopy(tower).double()) == digits
    assert fingerprint(copy.deepcopy(tower).bfloat16()) != digits  # this one loses digits


@pytest.mark.parametrize("options", [{"reduce_at": 0}, {"reduce_at": 1, "arch": "mlp"}], ids=str)
def test_leaves_the_reducer_out(options: dict, tower: nn.Module):
    digits = fingerprint(tower)
    reduced = zoo.reduce(tower, method="patchrank", keep=0.5, **options)
    assert reduced.reducer.state_dict()
    assert fingerprint(reduced) == digits
    assert fingerprint(zoo.reduce(tower, method="tome", keep=0.5)) == digits


def test_changes_with_every_single_weight(tower: nn.Module):
    seen = {fingerprint(tower)}
    for name, parameter in tower.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        digits = fingerprint(tower)
        assert digits not in seen, name
        seen.add(digits)


def test_tells_which_weight_is_where(tower: nn.Module):
    """Two blocks that change places hold the same numbers in another order."""
    moved = copy.deepcopy(tower)
    moved.blocks = nn.Sequential(moved.blocks[1], moved.blocks[0])
    assert fingerprint(moved) != fingerprint(tower)
