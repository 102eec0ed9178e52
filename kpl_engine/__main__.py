"""``python -m kpl_engine`` is ``kpl-engine``."""

import sys

from kpl_engine.cli.main import main

sys.exit(main())
