"""Rules of the house that no linter knows: what may be in the tree, and what must agree."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from harness.cli.entry import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("zoo", "harness", "baselines")
MIB = 2**20

LARGE_ALLOWED = {"zoo/embedded/clip_vit_s14.safetensors"}  # NOTICE gives the reason
SHIPPED = ("zoo/embedded/", "harness/embedded/data/")

# Put together from pieces, so that this file holds none of what it forbids.
FOLDERS = ("work", "tmp", "root", r"home/\w+", "opt", "mnt", r"Users/\w+", "etc/xdg")
MACHINE_PATH = re.compile(r"(?<![\w.{}$/)\]-])/(?:" + "|".join(FOLDERS) + r")(?![-.\w])")
HOSTS = (
    r"pypi\.org", r"pythonhosted\.org", r"npmjs\.(?:org|com)", r"yarnpkg\.com",
    r"download\.pytorch\.org", r"deb\.debian\.org", r"conda\.anaconda\.org",
)  # fmt: skip
REGISTRY_HOST = re.compile("|".join(rf"\b{host}\b" for host in HOSTS))


@cache
def tree() -> tuple[str, ...]:
    """Return every file that is tracked or would be, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return tuple(sorted(name for name in set(listed) if name and (ROOT / name).is_file()))


@cache
def text_of(name: str) -> str | None:
    raw = (ROOT / name).read_bytes()
    try:
        return None if b"\0" in raw[:4096] else raw.decode()
    except UnicodeDecodeError:
        return None


def occurrences(pattern: re.Pattern) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in tree()
        for number, line in enumerate((text_of(name) or "").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_machine_path_and_no_registry_host_in_any_file():
    assert occurrences(MACHINE_PATH) == occurrences(REGISTRY_HOST) == []
    for line in ("cd {}/x", 'open("{}/x")', "at={}", "PATH=a:{}/b"):
        assert all(MACHINE_PATH.search(line.format("/" + folder)) for folder in ("work", "home/ann"))


@pytest.mark.parametrize(("marker", "end"), [("main-command", "-m harness compare"), ("test-command", "tox")])
def test_readme_marks_a_command_for_the_main_job_and_one_for_the_tests(marker: str, end: str):
    [command] = re.findall(rf"^<!-- {marker} -->\n\s*```\w*\n([^\n]*)\n```$", text_of("README.md"), re.M)
    assert command.endswith(end)


def test_the_tree_is_small_and_its_large_files_are_the_listed_ones():
    sizes = {name: (ROOT / name).stat().st_size for name in tree()}
    assert sum(sizes.values()) < 60 * MIB
    assert {name for name, size in sizes.items() if size > 5 * MIB} <= LARGE_ALLOWED


def test_notice_names_every_shipped_file():
    shipped = [name for name in tree() if name.startswith(SHIPPED) and not name.endswith((".py", ".md"))]
    assert shipped, "no data files found: has a folder moved?"
    assert [name for name in shipped if Path(name).name not in text_of("NOTICE")] == []


def test_the_wheel_holds_every_file_of_the_packages():
    project = tomllib.loads(text_of("pyproject.toml"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": list(PACKAGES)}  # nothing left out
    installed = metadata.distribution("clip-patchrank")
    if '"editable": true' in (installed.read_text("direct_url.json") or ""):
        pytest.skip("an editable install holds no files; tox tests a wheel")
    ours = {name for name in tree() if name.startswith(tuple(f"{p}/" for p in PACKAGES))}
    assert ours - {file.as_posix() for file in installed.files or ()} == set()


def test_tool_releases_agree():
    pins = [
        dict(re.findall(r"(ruff|mypy|import-linter)==([\w.]+)", text))
        for text in map(text_of, ("pyproject.toml", "tox.ini", ".pre-commit-config.yaml"))
    ]
    assert set(pins[0]) == {"ruff", "mypy", "import-linter"}
    assert pins[1] == pins[0]
    assert pins[2] == {tool: pins[0][tool] for tool in ("ruff", "import-linter")}


def test_every_command_is_tried_on_the_newest_python():
    marks = [mark for name in tree() for mark in re.findall(r"mark\.command\((\".*\")\)", text_of(name) or "")]
    assert sorted(path for mark in marks for path in re.findall(r'"(.+?)"', mark)) == sorted(COMMANDS)


def test_a_method_and_a_dataset_of_the_extension_guide_work(tmp_path: Path):
    """Run both examples as written; in a process of their own, as they register names."""
    page = text_of("docs/extend.md")
    method, dataset, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    [compare] = re.findall(r"^patchrank (compare .*)$", page, re.M)
    checks = """
import open_clip, timm, torch, zoo
told = open_clip.get_model_config("clip_vit_b16_norm60")["vision_cfg"]
assert told["timm_model_name"] == "clip_vit_b16_norm60.openai"
vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
short = zoo.reduce(vit.eval(), method="norm", keep=0.5, order=1.0)
trace = short.trace(torch.randn(2, 3, 64, 64))
assert trace.final_tokens == 8
[went] = trace.reductions
assert (went.importance > 0).all()
blue = Colours().split("test")[3]
assert blue.label == Colours().labels("test")[3] == 1
assert blue.image.getpixel((9, 9))[:2] == (0, 0) < blue.image.getpixel((9, 9))[2:]
"""
    checks += f"""
from harness.cli.entry import main
assert main({[*compare.split(), "--limit", "4", "--batches", "--output", str(tmp_path)]}) == 0
"""
    code = "\n".join((method, dataset, checks))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
