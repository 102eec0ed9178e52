"""The phantom scripts are plain files that import one another: put their folder on the path for these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
