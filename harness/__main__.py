"""``python -m harness``, which is ``patchrank``."""

import sys

from harness.cli import main

sys.exit(main())
