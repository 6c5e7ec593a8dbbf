"""JSON lines: what several processes append is all there or not at all, and torn lines are dropped."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from harness.base.lines import append_lines, lock_file, parse_lines, require_appendable

pytest.importorskip("fcntl", reason="no locks here")

# Waits for the others, so that the file is made by several at once; the system stops a process that goes beyond its
# limit in the middle of a write.
WRITER = """
import json, resource, signal, sys, time
from pathlib import Path
from harness.base.lines import append_lines
path, name, count, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
while not path.with_name("go").exists():
    time.sleep(0.001)
for number in range(count):
    fill = "x" * (number * 977 % 20000)
    pair = [{"of": name, "number": 2 * number + i, "fill": fill} for i in (0, 1)]
    append_lines(path, "".join(json.dumps(one) + "\\n" for one in pair).encode())
"""


def test_no_line_of_several_processes_is_lost_or_mixed_even_if_one_is_killed(tmp_path: Path):
    path, names = tmp_path / "records.jsonl", ["a", "b"]
    processes = []
    for name, count, limit in (("a", 20, 2**40), ("b", 20, 2**40), ("doomed", 10_000, 300_000)):
        command = [sys.executable, "-c", WRITER, str(path), name, str(count), str(limit)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=120)[1] for process in processes]
    ends = [(process.returncode, text) for process, text in zip(processes, told, strict=True)]
    assert ends == [(0, "")] * 2 + [(-signal.SIGXFSZ, "")]
    append_lines(path, b"")  # drops what is torn, if it was the last
    found = defaultdict(list)
    for values in parse_lines(path, json.loads):
        found[values["of"]].append(values["number"])
    assert {name: found[name] for name in names} == {name: list(range(40)) for name in names}
    assert found.keys() <= {*names, "doomed"}
    assert found["doomed"] == list(range(len(found["doomed"])))


@pytest.mark.parametrize("left", [b"\0\0\0", b"{", b'{"a": "\xc3', b'{"a": {}', b'{"a": 1}\n{"b"'])
def test_all_that_is_no_whole_object_is_torn(left: bytes, tmp_path: Path):
    path = tmp_path / "records.jsonl"
    whole = b'{"a": 0}\n' + left[: left.rfind(b"\n") + 1]
    path.write_bytes(b'{"a": 0}\n' + left)
    with pytest.warns(UserWarning, match="the last line is torn"):
        assert parse_lines(path, bytes) == whole.splitlines()
    append_lines(path, b'{"c": 1}\n')
    assert path.read_bytes() == whole + b'{"c": 1}\n'


@pytest.mark.parametrize("content", [b'{"a": 1}', b'{"a": \n'])  # editors leave out the end
def test_neither_a_whole_line_nor_a_bad_one_with_an_end_is_dropped(content: bytes, tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    assert parse_lines(path, bytes) == content.splitlines()
    append_lines(path, b'{"a": 2}\n')
    assert parse_lines(path, bytes) == [*content.splitlines(), b'{"a": 2}']


def test_one_run_writes_a_file_and_removes_what_killed_ones_left(tmp_path: Path):
    path, link = tmp_path / "new" / "out.pt2", tmp_path / "link"
    link.symlink_to("new/out.pt2")
    others = [path.with_name(name) for name in (".out.pt2x.host-7.partial", ".other.host-7.partial")]
    with lock_file(path):
        for other in others:
            other.touch()
    with lock_file(path):
        for left in (path.with_name(".out.pt2.host-7.partial"), path.with_name(".out.pt2.host-8.partial") / "part"):
            left.parent.mkdir(exist_ok=True)
            left.touch()
        with pytest.raises(ValueError, match=r"another run is writing to .*out\.pt2': wait for its end"):
            lock_file(link).__enter__()
        with pytest.raises(KeyboardInterrupt):  # ``on_wait`` is called before the wait
            lock_file(link, on_wait=Mock(side_effect=KeyboardInterrupt)).__enter__()
    with lock_file(link):
        assert {one for one in path.parent.iterdir() if one.suffix != ".lock"} == set(others)
    with lock_file(Path("/dev/null")), lock_file(Path("/dev/null")), lock_file(None):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file' is a file, or lies in one; expected a folder"):
        lock_file(tmp_path / "file" / "out").__enter__()


@pytest.mark.parametrize("use", [
    lambda path: parse_lines(path, bytes), require_appendable, lambda path: append_lines(path, b"{}\n"),
])  # fmt: skip
def test_lines_are_in_files(use: Callable[[Path], object], tmp_path: Path):
    os.mkfifo(tmp_path / "records.jsonl")
    for path, kind in ((tmp_path / "records.jsonl", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(ValueError, match=f"{path.name}' is {kind}; expected a regular file"):
            use(path)
