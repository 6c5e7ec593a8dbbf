"""The paper's figures: consistent with themselves, and nothing where we know nothing."""

import pytest

from harness.studies.paper import get_reproduction, list_reproductions, printed
from harness.studies.workshop import StudyConfig

TABLES = list(list_reproductions())


def test_all_tables_and_both_figures_are_there():
    assert ["figure1", "figure5", *(f"table{i}" for i in range(1, 8))] == TABLES


@pytest.mark.parametrize("name", TABLES)
def test_columns_make_the_printed_mean_and_every_figure_has_a_row_of_ours(name: str):
    for row in printed(name).values():
        if row.values:  # up to how they were rounded: EViT's mean is printed a little low
            assert tuple(row.values) == row.columns
            assert sum(row.values.values()) / len(row.values) == pytest.approx(row.mean, abs=0.08)
    recipe = list_reproductions()[name]
    config = StudyConfig(datasets=recipe.datasets)
    names = [row.name for row in recipe.rows(config, 12)]
    assert len(set(names)) == len(names)
    assert set(printed(name)) <= set(names)
    for place, row in enumerate(recipe.rows(config, 12)):
        assert row.against is None or row.against in names[:place]


def test_a_mean_over_some_datasets_needs_each_of_them():
    rows = printed("table1")
    every = get_reproduction("table1").datasets
    assert rows["unpruned"].mean_over(every) == 67.9  # as printed
    assert rows["unpruned"].mean_over(["dtd", "ucf101"]) == pytest.approx((45.1 + 67.0) / 2)
    assert rows["unpruned"].mean_over(["dtd", "fashion"]) == 67.9  # others: as printed
    assert rows["unpruned"].mean_over([]) is None
    assert rows["golden, preservation, keep 60"].mean_over(["dtd"]) is None
    assert rows["golden, preservation, keep 60"].mean_over(every) == 67.0
    assert rows["predicted, preservation, keep 60"].values["food101"] == 82.8
    assert printed("table5")["V+T, keep 60"].mean == 79.5
    assert set(printed("table2")) == {"unpruned", "fitted on the target", "golden"}  # no pair


def test_the_paper_s_points_of_figure_1_stand_at_our_multiply_adds():
    rows = {row.name: row for row in get_reproduction("figure1").rows(StudyConfig(), 12)}
    assert rows["patchrank, keep 60"].paper_place == pytest.approx(12.25 / 17.58)
    assert rows["patchrank, keep 60"].place is None
    assert rows["unpruned"].paper_place is None


def test_without_imagenet_its_row_says_so():
    recipe = get_reproduction("table4")
    for datasets, empty in ((recipe.datasets, ""), (("dtd",), "needs imagenet among --datasets")):
        rows = {row.name: row for row in recipe.rows(StudyConfig(datasets=datasets), 12)}
        assert rows["Patch Ranking, ImageNet-trained"].empty == empty
