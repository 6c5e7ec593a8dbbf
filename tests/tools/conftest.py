"""Tools aren't installed: they are found in this folder, behind whatever is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
