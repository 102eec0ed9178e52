"""A result as a run leaves it, from latencies whose law is known: log-normal, each like the one before it (AR(1))."""

import numpy as np

from kpl_engine.bench.intervals import distribution, interval_of
from kpl_engine.bench.records import FORMAT

STAGES = ("read", "decode", "preprocess", "encode", "text_proxies", "labels", "proxies", "reply")


def lasting(rng, count, rho, spread=0.3):
    """exp(spread * Y) with Y of AR(1), unit variance and lag-one correlation rho: the percentiles are known."""
    noise = rng.standard_normal(count)
    noise[1:] *= np.sqrt(1.0 - rho * rho)
    values = np.empty(count)
    last = 0.0
    for index, each in enumerate(noise):
        last = rho * last + each if index else each
        values[index] = last
    return np.exp(spread * values)


def latencies(rng, count=1500, scale=1.0, rho=0.4, spread=0.2):
    return distribution(scale * lasting(rng, count, rho, spread))


def make_result(seed=0, scale=1.0, count=1500):
    """``scale`` multiplies every latency."""
    rng = np.random.default_rng((seed, 99))
    return {
        "kpl_engine_bench": FORMAT,
        "status": "complete",
        "date": "2026-11-24T02:00:00+00:00",
        "command": "kpl-engine bench lung.kpl --images films/ --find-peak --latency-bound-ms 15",
        "commit": "07d95b1",
        "versions": {"kpl-engine": "0.1.0", "onnxruntime": "1.32.0", "numpy": "2.4.6"},
        "machine": {
            "cpu": "AMD EPYC",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "platform": "Linux-6.18-x86_64",
            "python": "3.11.7",
            "gpus": [],
            "governor": "",
            "is_virtual": True,
            "load_average": [0.1, 0.2, 0.3],
        },
        "subject": {
            "bundle": "lung.kpl",
            "encoder": "ViT-B-32",
            "fingerprint": "3f2a",
            "knowledge": "chest",
            "method": "kpl",
            "mode": "frozen",
            "where": "in process",
            "device": "CPUExecutionProvider",
            "threads": 2,
            "input": "files",
            "samples": "64 made JPEG files of 500 x 375, seed 0",
            "samples_sha256": "ab" * 32,
        },
        "settings": {"bundle": "lung.kpl", "duration_s": 10.0, "target_qps": 70.0, "latency_bound_ms": 15.0},
        "scenarios": [_scenario(rng, name, scale, count) for name in ("SingleStream", "MultiStream", "Server")]
        + [_offline(rng, scale)],
        "probes": [_probe(qps, scale) for qps in (40.0, 80.0, 120.0, 100.0, 110.0)],
        "peak_qps": 110.0 / scale,
        "batches": [_batch(rng, size, scale) for size in (1, 2, 4, 8)],
        "stages": _stages(rng, scale),
        "cold_start": {
            "count": 5,
            **{
                name: interval_of(value * scale * lasting(rng, 5, 0.0, 0.05), "50")
                for name, value in (("import_ms", 210), ("load_ms", 160), ("first_ms", 22), ("total_ms", 395))
            },
            "resident_bytes": 180 << 20,
        },
    }


def check(is_right=True):
    return {
        "num_pictures": 16,
        "max_error": 3.1e-6 if is_right else 0.41,
        "tolerance": 2e-4,
        "num_other_labels": 0 if is_right else 3,
        "is_right": is_right,
        "reason": "" if is_right else "picture 7: expected 'nodule' 0.93, got 'mass' 0.52",
    }


def _scenario(rng, name, scale, count):
    pictures = 8 if name == "MultiStream" else 1
    latency = latencies(rng, count, 7.0 * scale * (4.0 if pictures == 8 else 1.0))
    found = {
        "scenario": name,
        "how": "BatchingService" if name == "Server" else "Engine.classify",
        "is_valid": name != "Server",
        "verdict": "Result is : VALID" if name != "Server" else "Result is : INVALID",
        "reasons": [] if name != "Server" else ["Early stopping satisfied: NO", "Would need to run at least 315 more"],
        "notes": ["10 s; MLPerf's rules ask for 600 s"],
        "is_speed_told": True,
        "check_before": check(),
        "check_after": check(),
        "num_queries": count,
        "num_samples": count * pictures,
        "num_failed": 0,
        "duration_s": count * latency["mean"]["value"] / 1e3,
        "samples_per_s": 1e3 * pictures / latency["mean"]["value"],
        "latency": latency,
        "issue_delay": latencies(rng, count, 0.02),
        "loadgen": {"Min latency (ns)": 5191488.0, "SUT name": "PySUT"},
        "resources": {
            "of": "this process",
            "cpu_s_per_sample": 0.012,
            "cpu_cores": 1.9,
            "resident_bytes": 410 << 20,
            "other_cores": 0.02,
        },
        "first_ms": 31.0,
        "warm_up_ms": [9.0, 7.4, 7.1],
    }
    if name == "Server":
        found |= {"target_qps": 70.0, "latency_bound_ms": 15.0}
    return found


def _offline(rng, scale):
    ends = np.cumsum(5.0 * scale * lasting(rng, 2000, 0.3, 0.2))
    found = _scenario(rng, "Offline", scale, 100) | {"num_queries": 1, "num_samples": 2000}
    return found | {
        "latency": distribution(ends),
        "samples_per_s": float(2e6 / ends[-1]),
        "duration_s": float(ends[-1] / 1e3),
    }


def _probe(qps, scale):
    load = min(0.97, qps * scale / 125.0)
    p50, p99 = 5.0 * scale / (1 - load) ** 0.2, 7.0 * scale / (1 - load) ** 0.33
    return {
        "target_qps": qps,
        "samples_per_s": min(qps, 118.0),
        "keeps_bound": p99 <= 15.0,
        "is_valid": p99 <= 15.0,
        "p50_ms": p50,
        "p90_ms": 0.5 * (p50 + p99),
        "p99_ms": p99,
        "num_queries": 900,
    }


def _batch(rng, size, scale):
    calls = scale * (2.0 + 4.2 * size) * lasting(rng, 60, 0.2, 0.05)
    return {"batch": size, "samples_per_s": interval_of(1e3 * size / calls, "50"), "ms": interval_of(calls, "50")}


def _stages(rng, scale):
    sizes = dict(zip(STAGES, (0.05, 2.1, 0.6, 3.9, 0.12, 0.03, 0.25, 0.08), strict=True))
    return {
        "order": list(STAGES),
        "stages": {name: latencies(rng, 1200, size * scale) for name, size in sizes.items()},
        "total": latencies(rng, 1200, 7.3 * scale),
        "unexplained_share": 0.014,
        "runs_beside": [],
        "device_ms": {},
        "notes": [],
    }
