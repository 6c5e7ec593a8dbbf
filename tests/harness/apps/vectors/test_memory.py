"""Five thousand pictures take no more memory than five hundred, but for their names."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MIB = 2**20
# The peak of this process; getrusage would count what the parent had when it started it.
CODE = r"""
import re, sys
from pathlib import Path
from harness.cli.entry import main
assert main(["embed", *sys.argv[1:], "--batch", "256", "--decoders", "2", "--quiet"]) == 0
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks in /proc")
def test_memory_does_not_grow_with_the_pictures(tower: str, tmp_path: Path):
    generator = np.random.default_rng(0)
    for number in range(10):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for place in range(500):
                sink = io.BytesIO()
                Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(sink, "bmp")
                info = tarfile.TarInfo(f"{place:05d}.bmp")
                info.size = sink.tell()
                tar.addfile(info, io.BytesIO(sink.getvalue()))
    peaks = []
    for count, word in ((500, "0.tar"), (5_000, "[0-9].tar")):
        words = [str(tmp_path / word), "--model", tower, "--output", str(tmp_path / str(count))]
        command, environment = [sys.executable, "-c", CODE, *words], {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"{count:,} of {count:,} images" in done.stdout
        peaks.append(1024 * int(done.stdout.split()[-1]))
    few, many = peaks
    assert many - few < 48 * MIB
    assert many < 1500 * MIB
