"""The result of a run as it stands in a JSON file: what each field is, in one place.

Plain dictionaries on purpose: workers in other processes send them, files hold them, the report and `compare` read
them. A field that could not be measured is absent (the classes with ``total=False``), never zero. Times are
milliseconds unless the name says otherwise; rates count samples (pictures) a second.
"""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = [
    "FORMAT",
    "BatchPoint",
    "Check",
    "ColdStart",
    "Distribution",
    "Interval",
    "Machine",
    "Probe",
    "Resources",
    "Result",
    "Scenario",
    "Stages",
    "Subject",
]

FORMAT = 1


class Interval(TypedDict):
    """A quantity with its 95 % interval (`intervals`); both ends None where the samples are too few to say."""

    value: float
    low: float | None
    high: float | None


class Distribution(TypedDict):
    """Latencies of one kind. A percentile q is there only with at least 1 / (1 - q) samples."""

    count: int
    mean: Interval
    min: float
    max: float
    percentiles: dict[str, Interval]  # "50", "90", "99", "99.9"
    samples: list[float]  # in the order they began, at most 20,000: every k-th of them
    every: int  # that k


class Check(TypedDict):
    """Answers against the float64 reference."""

    num_pictures: int
    max_error: float  # largest difference of a probability
    tolerance: float
    num_other_labels: int  # labels that differ where the reference is not nearly undecided
    is_right: bool
    reason: str  # "" or what was wrong: picture, expected, got


class Resources(TypedDict, total=False):
    """Of the process that computed; ``of`` says which. Memory in bytes, power in watts, energy in joules."""

    of: str  # "this process" or "the client" (a server elsewhere shows nothing of itself)
    cpu_s_per_sample: float
    cpu_cores: float  # busy on average
    resident_bytes: int  # peak
    device_memory_bytes: int
    device_power_w: float
    device_j_per_sample: float
    other_cores: float  # kept busy by other processes of this machine: the run was not alone


class Scenario(TypedDict, total=False):
    """One scenario of LoadGen."""

    scenario: str
    how: str  # what took the queries: "Engine.classify", "BatchingService", "http://..."
    is_valid: bool  # LoadGen's verdict
    verdict: str  # its line, as it came
    reasons: list[str]  # its reasons and recommendations, as they came
    notes: list[str]  # ours: shorter than MLPerf asks, rate chosen by us, ...
    is_speed_told: bool  # False when an answer was wrong: then none of the fields below is there
    check_before: Check
    check_after: Check
    error: str  # why it ended early; the fields that were measured until then are there
    num_queries: int
    num_samples: int
    num_failed: int  # queries without an answer (refused, broken): each counts as missed
    codes: dict[str, int]  # of the answers of a server
    duration_s: float
    samples_per_s: float
    target_qps: float
    latency_bound_ms: float
    latency: Distribution  # of a query: from when it was due (Server) or issued until its answer
    issue_delay: Distribution  # how late LoadGen itself was
    loadgen: dict[str, float | str]  # the numbers of its summary, as they came
    resources: Resources
    first_ms: float  # the first call after loading
    warm_up_ms: list[float]  # the calls after it that were not counted


class Probe(TypedDict):
    """One rate tried by `peak`: the curve of percentiles against offered load."""

    target_qps: float
    samples_per_s: float
    keeps_bound: bool  # p99 within the bound, every query answered
    is_valid: bool  # LoadGen's verdict
    p50_ms: float
    p90_ms: float
    p99_ms: float
    num_queries: int


class BatchPoint(TypedDict):
    """Throughput of one batch size: whole calls of that many pictures."""

    batch: int
    samples_per_s: Interval
    ms: Interval  # median of a call


class Stages(TypedDict):
    """Where the time of one picture goes, one call at a time. ``unexplained_share`` is what no stage counts."""

    order: list[str]  # read, decode, preprocess, encode, text_proxies, labels, proxies, reply
    stages: dict[str, Distribution]
    total: Distribution
    unexplained_share: float  # of the mean total
    runs_beside: list[str]  # stages that run in threads beside others: they do not add up
    device_ms: dict[str, Interval]  # by events of the GPU; empty without one
    notes: list[str]


class ColdStart(TypedDict):
    """A fresh process to its first answer; medians over ``count`` starts."""

    count: int
    import_ms: Interval
    load_ms: Interval
    first_ms: Interval
    total_ms: Interval
    resident_bytes: int


class Machine(TypedDict):
    """Where it ran."""

    cpu: str
    cores: int
    memory_bytes: int
    platform: str
    python: str
    gpus: list[str]
    governor: str  # of the clock, "" where unknown
    is_virtual: bool
    load_average: list[float]  # before the run


class Subject(TypedDict):
    """What was measured: two results with other subjects are no comparison."""

    bundle: str  # file name
    encoder: str
    fingerprint: str  # of the encoder
    knowledge: str
    method: str
    mode: str
    where: str  # "in process" or the address
    device: str  # as the encoder names it
    threads: int
    input: str
    samples: str  # "64 made JPEG files of 500 x 375, seed 0" or "132 files of films/"
    samples_sha256: str


class Result(TypedDict, total=False):
    """One run. ``status``: "complete", "failed" (``error`` says why, the rest is what was measured), "wrong"."""

    kpl_engine_bench: int  # FORMAT
    status: str
    error: str
    date: str  # ISO 8601, UTC
    command: str
    commit: str
    versions: dict[str, str]
    machine: Machine
    subject: Subject
    settings: dict[str, Any]
    scenarios: list[Scenario]
    probes: list[Probe]
    peak_qps: float  # the highest rate that kept the bound
    batches: list[BatchPoint]
    stages: Stages
    cold_start: ColdStart
