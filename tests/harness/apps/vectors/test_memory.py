"""Five thousand pictures take no more memory than five hundred, but for their names."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MIB = 2**20
COUNTS = (500, 5_000)
# getrusage would count what the parent had when it started this process.
PEAK = """
import re
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
CODE = """
import json, sys
from harness.base.terminal import Progress
from harness.apps.setup import Setup
from harness.apps.vectors.embed import EmbedJob, embed
from harness.apps.vectors.source import open_source
tower, tars, out = sys.argv[1:]
source = open_source([tars])
done = embed(EmbedJob(setup=Setup.of(tower), source=source, out=Path(out), batch=256, decoders=2), Progress())
print(json.dumps({"total": done.total, "bad": done.bad, "peak": peak()}))
"""


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tars of five hundred tiny pictures."""
    folder = tmp_path_factory.mktemp("tars")
    generator = np.random.default_rng(0)
    for number in range(10):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for place in range(500):
                sink = io.BytesIO()
                Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(sink, "bmp")
                info = tarfile.TarInfo(f"{place:05d}.bmp")
                info.size = sink.tell()
                tar.addfile(info, io.BytesIO(sink.getvalue()))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks in /proc")
def test_memory_does_not_grow_with_the_pictures(tars: Path, tower: str, tmp_path: Path):
    peaks = []
    for count, word in zip(COUNTS, ("0.tar", "[0-9].tar"), strict=True):
        command = [sys.executable, "-c", PEAK + CODE, tower, str(tars / word), str(tmp_path / str(count))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert (facts["total"], facts["bad"]) == (count, 0)
        peaks.append(1024 * facts["peak"])
    few, many = peaks
    assert many - few < 48 * MIB
    assert many < 1500 * MIB
