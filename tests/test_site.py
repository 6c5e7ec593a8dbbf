"""README and the site of docs/: pages true to settings and records, and every example runs."""

import ast
import csv
import dataclasses
import io
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image

import zoo
from harness.cli.entry import main, parse
from harness.datasets import get_dataset
from harness.measure import plan
from harness.records.record import read_records
from harness.report.folder import csv_text
from harness.studies.answer import StudyTable
from harness.studies.questions import list_studies
from tools import write_results
from zoo.core.reducer import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
STUDIES = RESULTS / "studies"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_pages_have_every_public_name_and_every_method_once():
    assert sorted(re.findall(r"^::: zoo\.(\w+)$", text_of("api.md"), re.M)) == sorted(zoo.__all__)
    assert sorted(re.findall(r"^## (.*)$", text_of("methods.md"), re.M)) == sorted(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_options_and_defaults_are_those_of_the_settings(method: str):
    section = text_of("methods.md").partition(f"\n## {method}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.M)
    fields = dataclasses.fields(METHODS[method].Config)
    assert [(name, ast.literal_eval(default)) for name, default in rows] == [(f.name, f.default) for f in fields]


def section_of(page: str, title: str = "") -> str:
    """Return a section of a page, or what stands before the first one."""
    return text_of(page).partition(f"\n## {title}\n" if title else "# ")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("page", "section"),
    [
        ("methods.md", ""),
        ("adaptive.md", ""),
        ("terms.md", "Questions"),
        ("towers.md", ""),
        ("export.md", "Optimised towers"),
    ],
)
def test_the_python_of_a_page_runs(page: str, section: str, monkeypatch):
    """Without generating code when compiled; tests/zoo/test_export.py does."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    names = run_python(section_of(page, section))
    assert names.get("features", torch.zeros(1)).isfinite().all()
    if page == "methods.md":
        trace = names["model"].trace(torch.randn(1, 3, 196, 196))
        assert [reduction.block for reduction in trace.reductions] == [2, 4]


def run_python(text: str, **names: Any) -> dict[str, Any]:
    """Run every block of Python of a text, in order, and return what it defines."""
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(code, names)
    return names


def run_commands(text: str, shorter: dict[str, list[str]]) -> int:
    """Run the commands of a text in order, some on less than they ask for, and count them."""
    lines = re.findall(r"^patchrank (.*)$", text, re.M)
    for line in lines:
        words = shlex.split(line)
        assert main([*words, *shorter.get(words[0], [])]) == 0, words
    return len(lines)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> Path:
    """Return a folder ``photos`` of clothing in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fashion = get_dataset("fashion")
    for split, count in {"train": 4, "test": 12}.items():
        images = fashion.split(split)
        for name in ("dress", "trousers"):  # the embedded text tower knows them
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in (images.labels == fashion.classes.index(name)).nonzero()[0][:count].tolist():
                images[number].image.convert("RGB").save(folder / f"{number:04d}.jpg")
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_user_embeds_pictures_as_the_page_says():
    """Every command, in order, as it stands; the search is brief."""
    pytest.importorskip("onnxscript")
    Path("captions.txt").write_text("a photo of a dress.\na photo of a bag.\n")
    briefly = ["--search", "8", "--held-out", "20", "--methods", "rankmerge", "--precisions", "float32"]
    briefly += ["--rounds", "6", "--seconds", "0", "--batch", "1", "--runtimes", "optimized"]
    assert run_commands(text_of("embed.md"), {"choose": briefly, "export": ["--limit", "8"]}) == 8
    assert {path.name for path in Path().iterdir()} >= {"hits.png", "model.onnx", "pushed", "setup.json", "vectors"}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_user_compares_methods_as_the_page_says(monkeypatch):
    """Every command and the Python, in order, as it stands, on few images, with few methods of the main job."""
    monkeypatch.setattr(plan, "CALLS", 1)
    few = ["--limit", "4", "--batches", "--match-batch", "1", "--precision", "float32"]
    text = text_of("compare.md").replace(
        "patchrank compare\n", "patchrank compare --methods rankmerge patchrank --dataset photos\n"
    )
    assert run_commands(text, {"compare": few, "rank": ["--limit", "4"]}) == 9
    assert Path("report", "report.html").is_file()
    assert len(run_python(text)["table"]) > 8
    own = timm.create_model("local-dir:pruned", pretrained=True).reducer.predictor
    packaged = timm.create_model("clip_vit_s14_patchrank60", pretrained=True).reducer.predictor
    assert not torch.equal(own.net.score.weight, packaged.net.score.weight)


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code, tmp_path):
    """With the weights that ship instead of those that would be downloaded."""
    for name, ours in {"clip_vit_b16": "clip_vit_s14", "openai": "imgfocus_lit"}.items():
        assert name in code
        code = code.replace(name, ours)
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "photo.jpg")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", write_results.PARTS, ids=str)
def test_the_tables_of_a_page_are_those_of_its_records(page: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert write_results.write(page) == page.read_text("utf-8"), "run: python -m tools.write_results"


@pytest.mark.parametrize("path", write_results.FILES, ids=str)
def test_a_file_has_the_figures_of_its_records(path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert write_results.FILES[path]() == path.read_text("utf-8"), "run: python -m tools.write_results"


@pytest.mark.parametrize("name", list_studies())
def test_the_figures_of_a_study_are_those_of_its_records(name: str):
    """Labels say which records a line is of; all else is computed again."""
    text, found = (STUDIES / f"{name}.csv").read_text("utf-8"), list[dict[str, Any]]()
    for dataset, lines in groupby(csv.DictReader(io.StringIO(text)), lambda line: line["dataset"]):
        records = (one for one in read_records(STUDIES / f"{name}.jsonl.gz") if one.dataset == dataset)
        dense, rows = next(records), []
        for line in lines:
            labels = dict(list(line.items())[4 : list(line).index("group")])
            rows.append((labels, line["group"], list(islice(records, int(line["seeds"])))))
        assert list(records) == []
        found += StudyTable.of(name, dense, rows).lines()
    assert csv_text(found) == text


def figures_of(text: str) -> set[str]:
    """Return the decimal figures of a page, without code and targets of links."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", prose))


def test_figures_in_the_prose_of_results_are_in_a_table_or_a_study():
    tables = text_of("results.md") + README
    rows = {line for line in tables.splitlines() if line.startswith("|")}
    assert figures_of(text_of("results.md")) <= figures_of("\n".join(rows))
    for page in RESULTS.glob("*.md"):
        known = set()
        for name in re.findall(r"\(studies/(\w+)\.csv\)", page.read_text("utf-8")):
            lines = list(csv.DictReader((STUDIES / f"{name}.csv").read_text("utf-8").splitlines()))
            if "foreground_iou" in lines[0]:
                dense = (r.mean("foreground_iou") for r in read_records(STUDIES / f"{name}.jsonl.gz") if r.keep == 1)
                known |= {format(100 * share, ".1f") for share in dense if share is not None}
            for line in lines:
                known |= {format(float(line[n]), ".4f") for n in ("cosine_distance", "patch_distance") if line.get(n)}
                known |= {format(float(line["tau"]), ".3f")} if line["tau"] else set()
                shares = [float(line[name]) for name in line if ("iou" in name or name == "to_first") and line[name]]
                known |= {format(abs(100 * share), ".1f") for share in shares}
        assert figures_of(page.read_text("utf-8")) <= known


def test_a_page_leads_to_the_figures_and_the_command_of_each_study():
    pages = "".join(page.read_text(encoding="utf-8") for page in RESULTS.glob("*.md"))
    assert sorted(re.findall(r"^patchrank study (\w+)", pages, re.M)) == sorted(list_studies())
    assert set(re.findall(r"\(studies/(\w+)\.csv\)", pages)) == set(list_studies())


def test_commands_of_all_pages_are_commands():
    count = 0
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", "").replace("$WAY", "")
        for code in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S):
            for line in re.findall(r"^ *patchrank (.*)$", code, re.M):
                parse(shlex.split(line, comments=True))
                count += 1
    assert count > 80


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"title": "name", "version": "version", "license": "license"}
    assert {ours: cited[ours] for ours in names} == {ours: project[theirs] for ours, theirs in names.items()}
