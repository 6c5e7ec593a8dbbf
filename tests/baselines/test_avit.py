"""A-ViT: sums of halting scores by a loop over tokens, who goes and when."""

import math

import pytest
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import zoo


def slow_halting(
    tower: VisionTransformer, image: Tensor, left: dict[int, int], channel: int, gamma: float, beta: float
) -> tuple[Tensor, list[list[int]]]:
    """Run one image: after each block each token's score grows, before a point the largest go."""
    x = tower._pos_embed(tower.patch_embed(image[None]))
    places, total, kept = list(range(64)), dict.fromkeys(range(64), 0.0), []
    for index, block in enumerate(tower.blocks):
        if index in left:
            stay = sorted(places, key=lambda place: total[place])[: left[index]]
            rows = [0, *(1 + places.index(place) for place in sorted(stay))]
            x, places = x[:, rows], sorted(stay)
            kept.append(places)
        x = block(x)
        for row, place in enumerate(places):
            value = gamma * float(x[0, 1 + row, channel]) + beta
            total[place] += 1 / (1 + math.exp(-value))
    return tower.forward_head(tower.norm(x))[0], kept


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"keep": 0.5}, {1: 58, 2: 51, 3: 45, 4: 38, 5: 32}),
        ({"keep": 0.25, "reduce_at": [2, 4], "schedule": "geometric", "channel": 5}, {2: 32, 4: 16}),
        ({"keep": 0.5, "reduce_at": 3, "gamma": 2.0, "beta": 1.0}, {3: 32}),
    ],
)
def test_halting_is_the_slow_loop(options: dict, left: dict[int, int], tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="avit", **options)
    trace, config = model.trace(images), model.reducer.config
    assert model.reducer.counts(64) == left
    for index, image in enumerate(images):
        wanted, kept = slow_halting(tower, image, left, config.channel, config.gamma, config.beta)
        assert [went.after[index].tolist() for went in trace.reductions] == kept
        assert trace.output[index].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_tower_of_one_block_is_refused(tower: VisionTransformer):
    tower.blocks = tower.blocks[:1]
    with pytest.raises(ValueError, match="a tower of depth 1: tokens halt between two blocks"):
        zoo.reduce(tower, method="avit", keep=0.5)


def test_nothing_is_summed_up_after_the_last_point(tower: VisionTransformer, images: Tensor):
    model = zoo.reduce(tower, method="avit", keep=0.5, reduce_at=2)
    _, each = model.advance(model.embed(images), taps=range(6))
    assert each[0].importance is None
    assert all(tokens.importance is each[2].importance for tokens in each[2:])
