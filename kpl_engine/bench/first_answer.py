"""One cold start: ``python -m kpl_engine.bench.first_answer BUNDLE PICTURE`` and options as JSON; see `cold`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it is part of what is measured
    from kpl_engine.config import ModeName
    from kpl_engine.engine import Engine

__all__ = ["main"]


def main() -> None:
    """Import, load, answer once; print when each was done and how much is resident, as one line of JSON."""
    from kpl_engine.engine import Engine

    imported = time.monotonic()
    from kpl_engine.errors import KplError

    try:
        _answer(Engine, imported)
    except KplError as error:
        sys.exit(str(error))


def _answer(engine_type: type[Engine], imported: float) -> None:
    bundle, picture, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    engine = engine_type.load(bundle, options["device"])
    loaded = time.monotonic()
    base = engine.knowledge(options["knowledge"])
    mode: ModeName = options["mode"] or ("frozen" if engine.frozen_proxies(base.name) else "batch")
    answer = engine.classify([picture], options["method"], mode, knowledge=base.name)
    answered = time.monotonic()
    if answer.failures:
        sys.exit(answer.failures[0].message)
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
    marks = {"imported": imported, "loaded": loaded, "answered": answered, "resident_bytes": resident}
    print(json.dumps(marks))


if __name__ == "__main__":
    main()
