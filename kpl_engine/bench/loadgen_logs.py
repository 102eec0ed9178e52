"""What LoadGen wrote: its summary as it came, and the time of every sample from its trace."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["DETAIL", "SUMMARY", "TRACE", "Summary", "Trace", "read_complaints", "read_summary", "read_trace"]

DETAIL, SUMMARY, TRACE = "mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_trace.json"
_LINE = ":::MLLOG "
_VERDICT = re.compile(r"^Result is : (\w+)", re.MULTILINE)
_NUMBER = re.compile(r"^([^:\n*]+?)[ \t]*:[ \t]+(\S.*)$", re.MULTILINE)
# One event a sample, written when it is complete. The file as a whole is not JSON (keys in two pairs of quotes), and
# while LoadGen runs its last line is cut.
_SAMPLE = re.compile(
    rb'"name":"Sample","cat":"default","ph":"b","pid":\d+,"id":\d+,"ts":([\d.]+),"args":\{'
    rb'"sample_seq":(\d+),"query_seq":(\d+),"sample_idx":\d+,"issue_start_ns":(-?\d+),"complete_ns":(-?\d+)\}\}'
)
_PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Summary:
    """``reasons`` are the lines under the verdict and all recommendations; ``numbers`` the two tables of results."""

    verdict: str
    is_valid: bool
    reasons: tuple[str, ...]
    numbers: dict[str, float | str]


@dataclass(frozen=True, eq=False)
class Trace:
    """The samples that were completed, in the order LoadGen issued them; row i of every array is one sample.

    ``sample`` counts them from 0 over the whole run, ``query`` is the number of its query. ``begin_ns`` is when it was
    due (``Server``) or its query issued, on the clock of the run, int64; ``delay_ns`` how much later than that it was
    issued, ``latency_ns`` from ``begin_ns`` to its completion.
    """

    sample: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]
    begin_ns: npt.NDArray[np.int64]
    delay_ns: npt.NDArray[np.int64]
    latency_ns: npt.NDArray[np.int64]

    def of_queries(self) -> Trace:
        """One row a query: its first sample's, with the latency of the last to be complete."""
        if len(self.query) == 0:
            return self
        first = np.flatnonzero(np.diff(self.query, prepend=-1))
        latest = np.maximum.reduceat(self.latency_ns, first)
        return Trace(self.sample[first], self.query[first], self.begin_ns[first], self.delay_ns[first], latest)

    def without(self, samples: npt.ArrayLike) -> Trace:
        """All but the samples of these numbers."""
        keeps = ~np.isin(self.sample, samples)
        columns = (self.sample, self.query, self.begin_ns, self.delay_ns, self.latency_ns)
        return Trace(*(column[keeps] for column in columns))

    @property
    def seconds(self) -> float:
        """From the first beginning to the last completion."""
        if len(self.query) == 0:
            return 0.0
        return float((self.begin_ns + self.latency_ns).max() - self.begin_ns.min()) / 1e9


def read_summary(text: str) -> Summary:
    """Parse ``mlperf_log_summary.txt``; `ValueError` where it holds no verdict."""
    found = _VERDICT.search(text)
    if found is None:
        raise ValueError(f"LoadGen's summary: expected a line 'Result is : ...', got {text[:200]!r}")
    results = text.split("Test Parameters Used", maxsplit=1)[0]
    head, _, tail = results[found.end() :].partition("=====")
    reasons = [line.strip() for line in head.splitlines() if line.strip()]
    # Errors of LoadGen itself stand at the end, behind the parameters.
    reasons += [line for line in text.splitlines() if re.match(r"\d+ (warnings?|errors?) encountered", line, re.I)]
    tables = results[: found.start()] + tail
    numbers = {name.strip(): _number(value) for name, value in _NUMBER.findall(tables)}
    return Summary(found.group(0), found.group(1) == "VALID", tuple(reasons), numbers)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip()


def read_complaints(text: str) -> list[str]:
    """Warnings and errors of ``mlperf_log_detail.txt``, which the summary only counts."""
    found = []
    for line in text.splitlines():
        if line.startswith(_LINE) and ('"is_warning": true' in line or '"is_error": true' in line):
            entry = json.loads(line[len(_LINE) :])
            kind = "error" if entry["metadata"]["is_error"] else "warning"
            found.append(f"{kind} of LoadGen: {entry['value']}")
    return found


def read_trace(path: Path) -> Trace:
    """Parse the trace, also one that is still being written; empty where there is none."""
    parts = [np.empty((0, 5))]
    if path.is_file():
        with path.open("rb") as file:
            while lines := file.readlines(_PART_BYTES):
                # float64 holds microseconds with three decimals, and nanoseconds, exactly up to 2^53 ns: 104 days.
                parts.append(np.array(_SAMPLE.findall(b"".join(lines)), dtype=np.float64).reshape(-1, 5))
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    begin, sample, query, delay, latency = (np.rint(column).astype(np.int64) for column in (rows * [1e3, 1, 1, 1, 1]).T)
    return Trace(sample, query, begin, delay, latency)
