"""The compact text tower against open_clip's whole one, unknown words, and its training."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor

from zoo.loading import text
from zoo.loading.text import CompactText, LitConfig, LitModel, tokenizer, train_lit

GEOMETRY = {"context_length": 12, "width": 24, "heads": 2, "layers": 2, "output_dim": 10}
SEEN = ["a photo of a cat.", "an icon of two dogs, a photo", "mixed-up cats"]
START, END = 49406, 49407


@pytest.fixture
def tokens() -> Tensor:
    return tokenizer(12)(SEEN)


@pytest.fixture
def compact(tokens: Tensor) -> CompactText:
    torch.manual_seed(1)
    return CompactText(tokens.unique().tolist(), **GEOMETRY).eval()


def whole(compact: CompactText) -> TextTransformer:
    """Copy the compact tower into open_clip's, each row to the place of its token."""
    full = TextTransformer(vocab_size=49408, **GEOMETRY).eval()
    state = compact.tower.state_dict()
    table = torch.randn(49408, 24)  # rows that must not be read
    for row, token in enumerate(compact.token_ids.tolist()):
        table[token] = state["token_embedding.weight"][row]
    full.load_state_dict({**state, "token_embedding.weight": table})
    return full


@torch.no_grad()
def test_equals_open_clips_tower_with_the_same_rows(compact: CompactText, tokens: Tensor):
    full = whole(compact)
    known = ["cats of a cat", "a", "", "two photo cats, of cats"]
    for texts in (SEEN, known, ["a photo of " * 9]):  # the last is cut, but keeps its end
        ids = tokenizer(12)(texts)
        assert torch.allclose(compact(ids), full(ids), atol=1e-6)
    assert compact(tokens).shape == (3, 10)
    assert compact.tower.token_embedding.weight.shape == (len(compact.token_ids), 24)
    assert "token_ids" not in compact.state_dict()
    assert (compact(tokens)[0] - compact(tokens)[1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("a zebra", "never saw 'zebra'; use other words, or a model with a full vocabulary"),
        ("a zebra of the river", "never saw 'river', 'the', 'zebra'; use"),
        ("cat cat cow", "never saw 'cow';"),
        ("cat!", "never saw '!';"),
    ],
)
def test_unseen_words_are_named(words: str, match: str, compact: CompactText):
    with pytest.raises(ValueError, match=re.escape(match)):
        compact(tokenizer(12)([words, "a photo of a cat."]))


@pytest.mark.parametrize("token", [1, 5000, 49405])
def test_ids_between_the_known_ones(token: int, compact: CompactText):
    assert token not in compact.token_ids
    with pytest.raises(ValueError, match="the embedded text tower never saw"):
        compact.rows(torch.tensor([[START, token, END]]))


@pytest.mark.parametrize("ids", [[0, 5, 3], [0, 3, 3]])
def test_token_ids_come_ascending(ids: list[int]):
    with pytest.raises(ValueError, match="token_ids: expected ascending ids, each once"):
        CompactText(ids, **GEOMETRY)


TEXTS = ["a cat", "a photo of a cat", "a dog", "a photo of a dog", "an animal", "a tree"]
CAPTIONS = [[0, 1, 4], [2, 3, 4], [5]]  # of cats, dogs and trees
CONFIG = LitConfig(steps=12, batch=9, warmup=3, learning_rate=3e-3, checkpoint_every=4)


class Job(NamedTuple):
    """Images of three kinds, apart by construction, and their captions."""

    images: Tensor
    captions: list[list[int]]
    tokens: Tensor


@pytest.fixture
def job() -> Job:
    generator = torch.Generator().manual_seed(5)
    kinds = torch.arange(30) % 3
    images = 2 * torch.eye(3, 12)[kinds] + 0.2 * torch.randn(30, 12, generator=generator)
    return Job(images, [CAPTIONS[int(kind)] for kind in kinds], tokenizer(12)(TEXTS))


def fresh(job: Job, seed: int = 0) -> LitModel:
    torch.manual_seed(seed)
    return LitModel(12, CompactText(job.tokens.unique().tolist(), **GEOMETRY), 10)


class StoppedError(Exception):
    """Somebody pulled the plug."""


def run(
    job: Job, config: LitConfig, checkpoint: Path, *, stop: int | None = None, seed: int = 0
) -> tuple[LitModel, list[tuple[int, float]]]:
    """Train a fresh model; ``stop`` breaks off in the middle of that step."""
    model, losses = fresh(job, seed), []

    def on_step(step: int, loss: float) -> None:
        if step == stop:
            raise StoppedError
        losses.append((step, loss))

    options = {"weights": torch.ones(len(job.images)), "checkpoint": checkpoint}
    train_lit(model, *job, config, on_step=on_step, **options)
    return model, losses


@pytest.mark.parametrize("stop", [4, 6, 9])
def test_a_stopped_run_ends_like_one_that_went_through(stop: int, job: Job, tmp_path: Path):
    through, losses = run(job, CONFIG, tmp_path / "a.pt")
    with pytest.raises(StoppedError):
        run(job, CONFIG, tmp_path / "b.pt", stop=stop)
    # Other initial weights and another state of the global generator: all comes from the file.
    resumed, rest = run(job, CONFIG, tmp_path / "b.pt", seed=9)
    done = stop // 4 * 4
    assert [step for step, _ in rest] == list(range(done, 12))
    assert rest == losses[done:]
    again, nothing = run(job, CONFIG, tmp_path / "a.pt", seed=1)  # a finished run
    assert nothing == []
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
        assert torch.equal(weight, again.state_dict()[name]), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


@pytest.mark.parametrize("change", [{"steps": 13}, {"learning_rate": 1e-3}, {"seed": 1}], ids=str)
def test_another_recipe_does_not_go_on(change: dict, job: Job, tmp_path: Path):
    run(job, CONFIG, tmp_path / "a.pt")
    match = r"a.pt' was made with another recipe, .*'steps': 12.*; remove it to start anew"
    with pytest.raises(ValueError, match=match):
        run(job, replace(CONFIG, **change), tmp_path / "a.pt")


def test_the_loss_counts_every_positive():
    logits = torch.randn(4, 5)
    positive = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0.0]])
    total = 0.0
    for row in range(4):
        log_sum = math.log(sum(math.exp(v) for v in logits[row].tolist()))
        mine = [c for c in range(5) if positive[row, c] == 1]
        total -= sum(logits[row, c].item() - log_sum for c in mine) / len(mine)
    assert text._spread_loss(logits, positive).item() == pytest.approx(total / 4, rel=1e-5)


def test_an_image_matches_its_captions(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Redo the first batch's targets by hand from what the loss is given."""
    targets: list[Tensor] = []

    def loss(logits: Tensor, positive: Tensor) -> Tensor:
        targets.append(positive)
        return logits.sum()

    monkeypatch.setattr(text, "_spread_loss", loss)
    run(job, replace(CONFIG, steps=1, batch=24), tmp_path / "a.pt")
    forth, back = targets
    assert torch.equal(back, forth.T)
    # All six captions are drawn by 24 images, so rows show whole caption sets, in order.
    sets = {tuple(row.nonzero().flatten().tolist()) for row in forth}
    assert sets == {(0, 1, 4), (2, 3, 4), (5,)}


def test_learns_what_is_there_to_learn(job: Job, tmp_path: Path):
    config = replace(CONFIG, steps=150, batch=24, warmup=10, checkpoint_every=1000)
    model, losses = run(job, config, tmp_path / "a.pt")
    assert losses[-1][1] < losses[0][1] - 0.5
    with torch.no_grad():
        image = F.normalize(model.project(job.images), dim=-1)
        words = F.normalize(model.text(job.tokens[[0, 2, 5]]), dim=-1)
    assert torch.equal((image @ words.T).argmax(dim=1), torch.arange(30) % 3)


def test_the_rate_grows_then_falls_to_nothing():
    config = LitConfig(steps=110, warmup=10)
    rates = [text._schedule(step, config) for step in range(110)]
    assert rates[:11] == pytest.approx([*((i + 1) / 10 for i in range(10)), 1.0])
    assert rates[60] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_only_matrices_decay(job: Job):
    model = fresh(job)
    decayed, plain = text._groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    spared = {names.pop(id(p)) for p in plain["params"]}
    assert names.keys() == {id(p) for p in decayed["params"]}
    assert {"project.weight", "text.tower.text_projection"} <= set(names.values())
    assert all(re.search(r"bias|ln_|embedding|logit_scale", name) for name in spared)
