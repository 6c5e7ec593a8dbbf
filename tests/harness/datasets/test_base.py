"""What holds for every dataset that is shipped, and the interface's refusals."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from harness.datasets import get_dataset, list_datasets, packaged
from harness.datasets.base import FINAL, SPLITS, Dataset, lines_of, require_template
from harness.datasets.images import folder_images

NAMES = tuple(name for name in list_datasets() if get_dataset(name).files)


@pytest.mark.parametrize(("ask", "match"), [
    (lambda: get_dataset("fasion"), r"'fasion'.*'fashion'.*patchrank list"),
    (lambda: get_dataset("folder-parted-x"), "'folder-parted-x'.*folder-parted:PATH"),
    (lambda: get_dataset("fashion").split("dev"), "train, val, test, got 'dev'"),
    (lambda: get_dataset("fashion").split("final"), "patchrank study final"),
    (lambda: get_dataset("emoji-captions").released().split("final"), "'emoji-captions'.*'final'"),
    (lambda: get_dataset("photos").with_templates(["a {}"]), "--templates: 'photos'"),
    *((partial(get_dataset("fashion").with_templates, [t]), re.escape(repr(t))) for t in ("{} {}", "{} {!r}", "{")),
    *((partial(folder_images, name), f"'{name}'") for name in ("nowhere", __file__)),
])  # fmt: skip
def test_refusals(ask, match):
    with pytest.raises((ValueError, OSError), match=match):
        ask()
    require_template("100 % {}, it is")


@pytest.mark.parametrize(("kind", "file"), [
    ("folder", "classes.txt"), ("wds", "classnames.txt"), ("wds", "test/0.tar"), ("wds", "test/nshards.txt"),
    ("coop", "split_zhou_Cats.json"),
])  # fmt: skip
def test_a_pipe_is_refused_by_name(kind: str, file: str, tmp_path: Path):
    """To open it would wait for ever."""
    for folder in ("cat", "data", "test"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classnames.txt").write_text("cat")
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises(ValueError, match=f"'{tmp_path / file}' is a pipe"):
        get_dataset(f"{kind}:{tmp_path / (file if kind == 'coop' else '')}")


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    dataset: Dataset = get_dataset(name)
    assert len(dataset.classes) == len(set(dataset.classes))
    assert dataset.labelled == bool(dataset.classes) == (len(dataset.templates) >= 3)
    assert all(template.count("{}") == 1 for template in dataset.templates)
    if dataset.has_final:
        dataset = dataset.released()
    splits = [dataset.split(one) for one in (*SPLITS, *([FINAL] if dataset.has_final else []))]
    for split in splits:
        assert (split.labels < len(dataset.classes)).all()
        if len(split):
            example = split[len(split) - 1]
            assert example.label == split.labels[-1]
            assert example.image.mode == "RGB"
            if dataset.labelled:
                assert (example.mask.shape, example.mask.dtype) == (example.image.size[::-1], np.bool_)
    assert len({image_id for split in splits for image_id in split.image_ids}) == sum(map(len, splits))
    assert len(np.unique(dataset.labels("test"))) == max(len(dataset.classes), 1)


@pytest.mark.parametrize("name", ["fashion", "emoji"])
def test_ids_and_labels_need_no_image_and_variants_no_order(name, monkeypatch):
    split = get_dataset(name).split("test")
    chosen = np.arange(len(split))[::-61]
    few = split.subset(chosen)
    both = few.variant(3).variants(2)
    assert few.image_ids == tuple(split.image_ids[i] for i in chosen)
    assert both.image_ids == tuple(f"{name}/{v}" for v in (3, 1) for name in few.image_ids)
    assert both[len(few)].image == few.variant(1)[0].image != few[0].image
    assert both[len(few)].image_id == both.image_ids[len(few)]
    assert few.variant(3).variant(0).image_ids == few[:].image_ids == few.image_ids
    monkeypatch.setattr(packaged, "finish", lambda *_: pytest.fail("drawn"))
    assert len(split.image_ids) == len(split.labels) == len(split)
    with pytest.raises(pytest.fail.Exception, match="drawn"):
        split[0]


@pytest.mark.parametrize(("content", "match"), [
    (b"x\n\ny", "line 2.*''"), (b"x\ny\x07", "line 2"), (b"\xff\xfe", "UTF-8"),
])  # fmt: skip
def test_lists_of_names_that_are_none(content: bytes, match: str, tmp_path):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"classes.txt'.*{match}"):
        lines_of(tmp_path / "classes.txt")


def test_other_prompts_and_less_images_are_another_condition():
    fashion = get_dataset("fashion")
    assert fashion.condition == fashion.with_templates(fashion.templates).condition == fashion.revision
    assert fashion.with_templates(["a {}"]).condition.startswith(f"{fashion.revision}-")
    less = fashion.without(fashion.split("test").image_ids[:2])
    assert less.split("test").image_ids == fashion.split("test").image_ids[2:]
    assert less.revision != fashion.revision == fashion.without(()).revision
