"""The engine against what a user would choose instead, in turns within one run, on answers checked equal.

    python benchmarks/rivals.py              # about fifteen minutes
    python benchmarks/rivals.py --quick      # under three

Three tasks: pictures to features (JPEG files of 500 x 375 through ViT-B-32 with random weights, 1 and 8 at once),
features to labels (text proxies, labels and the published 2000 steps, or their limit), and pictures to labels (1, 8 and
64 at once). Every rival is a process of its own with the same number of threads, set before its libraries load; it
sleeps while others have their turn, and the CPU time of those that wait is measured and told. Rounds go through all
rivals, every other one backwards. Ratios are taken within a round. A rival that is not installed is left out with the
reason; one that answers wrongly is given no time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("KPL_BENCH_THREADS", "2"))
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)  # of the references, too

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from load.client import Worker  # noqa: E402
from record import ROOT, machine_record, save  # noqa: E402
from rivals_checks import LOGIT_BOUNDS, Check, check_features, check_labels, exact_logits  # noqa: E402
from rivals_list import ADAPT, ENCODE, OURS, RIVALS, WHOLE, Rival  # noqa: E402
from rivals_pictures import read_texts  # noqa: E402
from rivals_report import rows_of, show_rivals, table_lines  # noqa: E402
from rivals_setup import adaptation, checked_parts  # noqa: E402
from serving_processes import foreign_cpu  # noqa: E402

BATCH = 8  # of every encoder: the engine's default
PAUSE_S = 0.3  # the threads of OpenBLAS spin for 0.1 s after their last product, those of others less
MOST_S = {"open": 300.0, "answer": 120.0, "turn": 120.0}  # what takes longer hangs, and is ended
HOME = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What is measured, how long and how often."""

    cases: tuple[tuple[str, Any], ...]
    rounds: int
    seconds: float

    @property
    def tasks(self) -> set[str]:
        return {task for task, _ in self.cases}


FULL = Plan(
    (
        *((ENCODE, size) for size in (1, 8)),
        *((ADAPT, size) for size in ((138, 768, 2), (662, 768, 2), (256, 512, 10))),
        *((WHOLE, size) for size in (1, 8, 64)),
    ),
    rounds=7,
    seconds=2.0,
)
QUICK = Plan(
    (*((ENCODE, size) for size in (1, 8)), (ADAPT, (138, 768, 2)), *((WHOLE, size) for size in (1, 64))), 2, 0.6
)


@dataclass
class Contender:
    """A rival, its process, and what became of it. ``reason``: why it is not measured (any more)."""

    number: int
    rival: Rival
    worker: Worker | None = None
    reason: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)

    def ask(self, what: str, **job: Any) -> dict[str, Any] | None:
        """One job; None and a reason when the process died or took too long."""
        if self.worker is None or self.reason:
            return None
        watch = threading.Timer(MOST_S[what], os.kill, (self.worker.pid, signal.SIGKILL))
        watch.start()
        try:
            return self.worker.ask(what=what, **job)
        except (RuntimeError, OSError, ValueError) as error:
            self.reason = f"its process ended at {what} {job.get('task', '')} {job.get('size', '')}: {error}"
            return None
        finally:
            watch.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, short turns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose rivals")
    parser.add_argument("--tasks", nargs="+", choices=(ENCODE, ADAPT, WHOLE), help="these alone")
    parser.add_argument("--rivals", nargs="+", metavar="NAME", help="these alone, beside ours")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "rivals", help="the bundle is kept here")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    plan = QUICK if args.quick else FULL
    if args.tasks:
        plan = Plan(tuple(case for case in plan.cases if case[0] in args.tasks), plan.rounds, plan.seconds)
    load = os.getloadavg()
    made = set_up(args.work.resolve())
    chosen = choose(args.device, plan.tasks, args.rivals)
    record = machine_record(tuple(sorted({package for each in chosen for package in each.rival.packages})))
    record |= {"threads": THREADS, "batch": BATCH, "device": args.device, "rounds": plan.rounds, "work": made}
    record |= run(args.work.resolve(), chosen, plan)
    record |= {"load_average": {"before": load, "after": os.getloadavg()}}
    print("\n".join(table_lines(record)))
    show_rivals(record)
    if not args.no_save:
        print(f"-> {save('rivals' + ('-quick' if args.quick else ''), record)}")
    if not record["rows"]:
        raise SystemExit("nothing was measured: the engine itself failed or was wrong; see above")


def set_up(work: Path) -> dict[str, Any]:
    """The folder that all work in, made by a process that may load torch."""
    done = subprocess.run(
        [sys.executable, HOME / "rivals_setup.py", work], stdout=subprocess.PIPE, text=True, check=False, cwd=HOME
    )
    if done.returncode:
        raise SystemExit('the model could not be made; it needs torch and open_clip: pip install ".[export,test]"')
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def choose(device: str, tasks: set[str], names: list[str] | None) -> list[Contender]:
    """The rivals of that device, ours first; those of the other device are told as not run."""
    found = []
    for number, rival in enumerate(RIVALS):
        if not tasks.intersection(rival.tasks) or (names and rival.name not in (OURS, *names)):
            continue
        if rival.device == device:
            found.append(Contender(number, rival))
        elif rival.device == "cuda":
            found.append(Contender(number, rival, reason="not run: needs an NVIDIA GPU, and --device cuda"))
    return found


def run(work: Path, contenders: list[Contender], plan: Plan) -> dict[str, Any]:
    """Open all, check all, then measure those that are left."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        for each in contenders:
            open_rival(stack, work, each, plan.tasks)
        for task, size in plan.cases:
            check_case(work, contenders, task, size)
        for task, size in plan.cases:
            rows += rows_of(task, size, measure(contenders, task, size, plan))
    rivals = {
        name_of(each): {
            "reason": each.reason,
            "device": each.rival.device,
            "tasks": each.rival.tasks,
            "checks": each.checks,
            **each.told,
        }
        for each in contenders
    }
    return {"rivals": rivals, "rows": rows}


def name_of(each: Contender) -> str:
    """With the device, where it is not the CPU."""
    return each.rival.name + (", CUDA" if each.rival.device == "cuda" else "")


def open_rival(stack: contextlib.ExitStack, work: Path, each: Contender, tasks: set[str]) -> None:
    """Start its process and load it, or note why not."""
    if each.reason:
        return
    rival, log = each.rival, work / f"rival-{each.number}.log"
    given = {"opens": rival.opens, "device": rival.device, "options": dict(rival.options)}
    given |= {"work": str(work), "threads": THREADS, "batch": BATCH, "log": str(log)}
    each.worker = stack.enter_context(Worker("rivals_worker.py", json.dumps(given)))
    found = each.ask("open", tasks=sorted(tasks.intersection(each.rival.tasks)))
    if found is not None:
        each.reason = found.pop("skipped", "")
        each.told = found
    print(f"{name_of(each)}: {each.reason or 'ready'}", file=sys.stderr, flush=True)


def check_case(work: Path, contenders: list[Contender], task: str, size: Any) -> None:
    """Hold every answer of one case to what is right; who is wrong takes no further part."""
    expected = expected_features(work, size) if task == ENCODE else expected_logits(work, task, size)
    for each in contenders:
        if task not in each.rival.tasks:
            continue
        found = each.ask("answer", task=task, size=size, path=str(work / "answer.npz"))
        if found is None:
            continue
        with np.load(found["path"]) as answer:
            if task == ENCODE:
                check = check_features(answer["features"], expected)
            else:
                bound = LOGIT_BOUNDS[each.rival.name.startswith(OURS)]
                check = check_labels(answer["labels"], answer.get("logits"), expected, bound)
        each.checks[json.dumps([task, size])] = check
        if not check["is_right"]:
            each.reason = f"WRONG ANSWER at {task} {size}: {check['reason']}"


def expected_features(work: Path, size: int) -> Any:
    """Of the float32 torch model, (n, d), for the pictures that are checked."""
    return np.load(work / "features.npy")[: checked_parts(size)[-1].stop]


def expected_logits(work: Path, task: str, size: Any) -> Any:
    """Float64 logits (n, c) of what `check_case` asks."""
    if task == ADAPT:
        return exact_logits(*adaptation(size))
    X, texts = np.load(work / "features.npy"), read_texts(work)
    return np.concatenate([exact_logits(X[part], texts) for part in checked_parts(size)])


def measure(contenders: list[Contender], task: str, size: Any, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The turns of one case, rival by rival; one that fails on the way is dropped, with its earlier turns."""
    playing = [each for each in contenders if task in each.rival.tasks and each.worker and not each.reason]
    turns: dict[str, list[dict[str, Any]]] = {name_of(each): [] for each in playing}
    for number in range(plan.rounds):
        for each in playing if number % 2 == 0 else playing[::-1]:
            time.sleep(PAUSE_S)
            with foreign_cpu() as others, idle_cpu(playing, each) as idle:
                found = each.ask("turn", task=task, size=size, seconds=plan.seconds)
            if found is not None:
                found |= {"foreign_cores": others.cores, "idle_rivals_cores": idle[0]}
                turns[name_of(each)].append(found)
    return {name: runs for name, runs in turns.items() if len(runs) == plan.rounds}


@contextlib.contextmanager
def idle_cpu(playing: list[Contender], busy: Contender) -> Iterator[list[float]]:
    """Cores that the rivals kept busy whose turn it is not: threads that spin would show here."""
    others = [each.worker.pid for each in playing if each is not busy and each.worker and not each.reason]
    found, begin, before = [0.0], time.perf_counter(), cpu_seconds(others)
    yield found
    found[0] = max(cpu_seconds(others) - before, 0.0) / (time.perf_counter() - begin)


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes so far; none of one that is gone."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            spent = psutil.Process(pid).cpu_times()
            total += spent.user + spent.system
    return total


if __name__ == "__main__":
    main()
