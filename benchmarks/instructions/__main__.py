"""See command.py. `python benchmarks/instructions` puts this folder first on the path, its parent is what is needed."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from instructions.command import main  # noqa: E402

sys.exit(main())
