"""The guard of instruction counts: what callgrind writes, the comparison, its reasons, and that it sees slower code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("callgrind", "compare", "programs", "store", "toolchain", "turns", "doubles", "command")
rng = np.random.default_rng()

# Two calls: what `outer` took in `inner` stands with `inner`, and is not to be counted twice.
PART = """# callgrind format
version: 1
positions: line
events: Ir
summary: 160

ob=/x/program
fl=???
fn=kpl::avx2::(anonymous namespace)::outer(kpl::DualTask const&, unsigned long) [clone .constprop.0]
0 100
cob=/lib/libc.so.6
cfi=???
cfn=inner
calls=3 0
0 50
0 7

fn=inner
0 50

fn=void kpl::residual<3>(kpl::DualTask const&)
0 3

totals: 160
"""


@pytest.fixture
def guard(monkeypatch):
    """The modules of benchmarks/instructions."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return SimpleNamespace(**{name: import_module(f"instructions.{name}") for name in MODULES})


@pytest.fixture
def counts(guard, tmp_path, monkeypatch):
    """Of a machine where both programs give the counts in ``found``, and the file they are compared with."""
    Count, Part = guard.callgrind.Count, guard.compare.Part
    chain = {"compiler": "c++ 12", "cpu": "AVX2"}  # the latter is known only when the program ran
    found = {
        "core": Part(chain, 0.002, {"dual": Count(1_000_000, {"dot": 900_000, "exp": 100_000})}),
        "server": Part(chain, 0.005, {"one": Count(50_000, {"eval": 40_000}, {"flow.enter": 700})}),
    }
    main = guard.command

    class Program:
        def __init__(self, name):
            self.name, self.runs = name, 0

        def toolchain(self):
            return {"compiler": found[self.name].toolchain["compiler"]}

        def count(self):
            self.runs += 1
            return found[self.name]

        def trace(self, part):
            return part

    core, server = Program("core"), Program("server")
    monkeypatch.setattr(main, "COUNTS", tmp_path / "counts.json")
    monkeypatch.setattr(main, "Core", lambda build: core)
    monkeypatch.setattr(main, "Server", lambda: server)
    monkeypatch.setattr(guard.toolchain, "missing", lambda: "")
    monkeypatch.delenv("KPL_REQUIRE_GUARD", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["instructions", *arguments])
        return main.main()

    return SimpleNamespace(found=found, run=run, path=tmp_path / "counts.json", server=server)


def grown(part, case, share):
    """The part with a count of ``case`` that grew by ``share``, all of it in its first function."""
    old = part.counts[case]
    more = round(old.instructions * share)
    first = next(iter(old.functions))
    new = replace(
        old, instructions=old.instructions + more, functions={**old.functions, first: old.functions[first] + more}
    )
    return replace(part, counts={**part.counts, case: new})


def test_a_part_of_callgrind_counts_each_instruction_once(guard):
    count = guard.callgrind.parse(PART)
    assert count.instructions == 160
    assert count.functions == {"avx2::outer": 107, "inner": 50, "residual<3>": 3}


def test_misses_of_the_method_cache_are_left_out_with_what_they_call(guard):
    count = guard.callgrind.parse(PART.replace("cfn=inner", "cfn=find_name_in_mro.constprop.0"))
    assert count.instructions == 110
    assert count.functions["avx2::outer"] == 107


@pytest.mark.parametrize(
    "broken", [PART.replace("calls=3 0\n", ""), PART.replace("totals: 160", ""), "", "fn=x\n0 5\n"]
)
def test_a_part_that_does_not_add_up_is_refused(guard, broken):
    with pytest.raises(guard.callgrind.GuardError, match="add up"):
        guard.callgrind.parse(broken)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("main", "main"),
        ("(below main)", "(below main)"),
        ("kpl::Pace::choose(long, double, bool) const", "Pace::choose"),
        ("unlink_chunk.constprop.0", "unlink_chunk"),
        ("_PyEval_EvalFrameDefault'2", "_PyEval_EvalFrameDefault"),
        ("malloc@@GLIBC_2.2.5", "malloc"),
        ("f" * 300, "f" * 87 + "..."),
    ],
)
def test_names_lose_what_does_not_tell_them_apart(guard, name, short):
    assert guard.callgrind.shorten(name) == short


def test_changes_beyond_the_tolerance_are_told_in_both_directions(guard):
    Count, Part = guard.callgrind.Count, guard.compare.Part
    committed = Part({}, 0.002, {name: Count(100_000, {}) for name in ("a", "b", "c", "d", "gone")})
    found = {"a": 100_199, "b": 100_201, "c": 99_799, "d": 150_000, "new": 7}
    told = guard.compare.changes(committed, {name: Count(number, {}) for name, number in found.items()})
    assert {change.case for change in told[:2]} == {"gone", "new"}
    assert [change.case for change in told[2:]] == ["d", "b", "c"]
    assert told[2].text == "d: 100,000 -> 150,000 instructions (+50.00 %)"


def test_a_change_is_laid_to_the_functions_that_moved_most(guard):
    Count, Change = guard.callgrind.Count, guard.compare.Change
    before = Count(1000, {"dot": 700, "exp": 200, "sum": 60, "small": 10}, {"flow.enter": 80, "flow.leave": 20})
    after = Count(
        1100, {"dot": 780, "exp": 170, "sum": 60, "fresh": 50, "tiny": 5}, {"flow.enter": 90, "flow.leave": 20}
    )
    lines = [line.split(maxsplit=2) for line in guard.compare.explain(Change("x", before, after))]
    # "tiny" may have been there before, below the smallest that was kept; "small" may be there now.
    assert [(share, rest.split(": ")[0].split()[-1]) for share, _, rest in lines] == [
        ("+8.00", "dot"),
        ("+5.00", "fresh"),
        ("-3.00", "exp"),
        ("-1.00", "small"),
        ("+10.00", "flow.enter"),
    ]


def test_a_check_passes_where_nothing_changed_and_fails_with_the_way_out_where_it_did(counts, capsys):
    assert counts.run("--update", "--because", "first") == 0
    assert counts.run("--check") == 0
    assert "as committed" in capsys.readouterr().out
    counts.found["core"] = grown(counts.found["core"], "dual", 0.05)
    assert counts.run("--check") == 1
    said = capsys.readouterr().out
    assert "CHANGED core: dual: 1,000,000 -> 1,050,000 instructions (+5.00 %)" in said
    assert "instructions of dot: 900,000 -> 950,000" in said
    assert "--update --because" in said
    assert "server: 1 counts as committed" in said


@pytest.mark.parametrize("reason", [[], ["--because", ""], ["--because", " \n "]])
def test_an_update_without_a_reason_is_refused_before_anything_runs(counts, capsys, reason):
    assert counts.run("--update", *reason) == 2
    assert counts.server.runs == 0
    assert "expected a reason" in capsys.readouterr().err
    assert not counts.path.exists()


def test_an_update_without_a_reason_is_refused_by_the_store_too(guard, counts):
    with pytest.raises(guard.callgrind.GuardError, match="expected a reason"):
        guard.store.updated(guard.store.Store(), counts.found, " ", "2026-01-01")


def test_reasons_are_kept_latest_first_and_only_the_last_few(guard, counts):
    for i in range(13):
        counts.found["core"] = grown(counts.found["core"], "dual", 0.01)
        assert counts.run("--update", "--because", f"reason  {i}") == 0
    history = guard.store.load(counts.path).history
    assert [entry["because"] for entry in history] == [f"reason {i}" for i in range(12, 2, -1)]
    assert history[0]["changed"]["core"][0].startswith("dual: ")
    assert "server" not in history[0]["changed"]
    before = counts.path.read_bytes()
    assert counts.run("--update", "--because", "nothing") == 0
    assert counts.path.read_bytes() == before


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(("other", "runs"), [({"compiler": "c++ 13"}, 0), ({"cpu": "SSE2"}, 1), ({"libm": "new"}, 1)])
def test_another_toolchain_is_not_compared_and_says_what_differs(counts, capsys, monkeypatch, required, other, runs):
    counts.run("--update", "--because", "first")
    part, counts.server.runs = counts.found["server"], 0
    counts.found["server"] = replace(grown(part, "one", 0.5), toolchain={**part.toolchain, **other})
    monkeypatch.setenv("KPL_REQUIRE_GUARD", "01"[required])
    assert counts.run("--check") == required
    said = capsys.readouterr().out
    ((name, here),) = other.items()
    before = part.toolchain.get(name, "none")
    assert f"NOT COMPARED: server: {name}: the counts hold for {before!r}, here is {here!r}" in said
    assert "core: 1 counts as committed" in said
    assert counts.server.runs == runs
    counts.found["core"] = grown(counts.found["core"], "dual", 0.05)
    assert counts.run("--check") == 1  # the part that can be compared is


@pytest.mark.parametrize("required", [False, True])
def test_a_machine_without_valgrind_says_so(guard, capsys, monkeypatch, required):
    monkeypatch.setattr(guard.toolchain, "which", lambda name, path=None: None)
    monkeypatch.setenv("KPL_REQUIRE_GUARD", "01"[required])
    monkeypatch.setattr(sys, "argv", ["instructions", "--check"])
    assert guard.command.main() == required
    assert "NOT COMPARED: valgrind is not installed" in capsys.readouterr().out


def test_a_file_of_another_format_is_refused(guard, tmp_path):
    path = tmp_path / "counts.json"
    for text in (
        '{"format": 2, "parts": {}, "history": []}',
        "{}",
        "[]",
        "no JSON",
        '{"format": 1, "parts": {"core": {}}, "history": []}',
    ):
        path.write_text(text)
        with pytest.raises(guard.callgrind.GuardError, match=r"counts\.json"):
            guard.store.load(path)


def test_the_committed_counts_are_those_of_the_cases(guard):
    store = guard.store.load(ROOT / "benchmarks" / "instructions" / "counts.json")
    assert set(store.parts["core"].counts) == set(guard.programs.CORE_CASES)
    assert set(store.parts["server"].counts) == set(guard.programs.SERVER_CASES) == set(guard.turns.CASES)
    assert store.history[0]["because"]
    for name, tolerance in (("core", guard.programs.CORE_TOLERANCE), ("server", guard.programs.SERVER_TOLERANCE)):
        assert store.parts[name].tolerance == tolerance
    source = (ROOT / "kernels" / "cpu" / "instructions" / "core_cases.cpp").read_text()
    assert all(f'{{"{case}", ' in source for case in guard.programs.CORE_CASES)


def test_the_cases_of_the_server_answer_what_they_ask(guard, monkeypatch):
    monkeypatch.setattr("kpl_engine.server.stages.prepare_picture", None)  # a desk puts its own there
    for name, case in guard.turns.CASES.items():
        desk = guard.doubles.Desk()
        for _ in range(3):
            case(desk)
        told = desk.snapshot()
        cancelled = 18 if name == "crowd" else 0
        assert (told["inflight_images"], told["totals"]["cancelled"], told["totals"]["failed"]) == (0, cancelled, 0), (
            name
        )
        assert told["totals"]["requests"] >= 3


# A program with two cases, each between two calls of getppid; SLOWER doubles the loop of the second.
PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline)) unsigned work(unsigned turns) {
    volatile unsigned total = 0;
    for (unsigned i = 0; i < turns; ++i) total += i;
    return total;
}
int main(int count, char **names) {
    for (int i = 1; i < count; ++i) {
        unsigned turns = strcmp(names[i], "second") == 0 ? SLOWER * TURNS : 500;
        getppid();
        work(turns);
        getppid();
    }
    return puts("told") < 0;
}
"""


@pytest.fixture
def counted(guard, tmp_path):
    """Counts of PROGRAM's cases."""
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("valgrind") is None:
        if os.environ.get("KPL_REQUIRE_GUARD") == "1":
            pytest.fail("KPL_REQUIRE_GUARD=1, and no C compiler or no valgrind")
        pytest.skip("needs a C compiler and valgrind (Debian: gcc, valgrind)")
    turns = int(rng.integers(1000, 3000))

    def count(slower, cases=("first", "second")):
        folder = tmp_path / f"slower-{slower}-{len(cases)}"
        folder.mkdir()
        (folder / "work.c").write_text(PROGRAM)
        flags = ["-O1", f"-DSLOWER={slower}", f"-DTURNS={turns}"]
        subprocess.run([compiler, *flags, "-o", folder / "work", folder / "work.c"], check=True)
        out = folder / "out"
        out.mkdir()
        return guard.callgrind.measure([str(folder / "work")], cases, {"PATH": os.defpath}, out)

    return count


def test_a_loop_that_is_doubled_is_caught_and_the_same_one_is_not(guard, counted):
    before, told = counted(1)
    assert told == "told"
    committed = guard.compare.Part({}, 0.002, dict(zip(("first", "second"), before, strict=True)))
    again = dict(zip(("first", "second"), counted("1u")[0], strict=True))
    assert guard.compare.changes(committed, again) == []
    slower = dict(zip(("first", "second"), counted(2)[0], strict=True))
    (change,) = guard.compare.changes(committed, slower)
    assert change.case == "second"
    # The call around the loop does not double: 30 instructions of at least 4,000.
    assert guard.compare.growth(change.before, change.after) == pytest.approx(1.0, abs=0.02)
    assert "instructions of work: " in next(guard.compare.explain(change))


def test_a_program_that_fails_or_does_not_mark_its_cases_is_an_error(guard, counted, tmp_path):
    with pytest.raises(guard.callgrind.GuardError, match="two calls of getppid"):
        guard.callgrind.measure(["/bin/true"], ["first"], {"PATH": os.defpath}, tmp_path)
    with pytest.raises(guard.callgrind.GuardError, match="exit status 1"):
        guard.callgrind.measure(["/bin/false"], ["first"], {"PATH": os.defpath}, tmp_path)


def test_the_toolchain_names_what_decides_a_count(guard, tmp_path):
    (tmp_path / "CMakeCache.txt").write_text(
        f"CMAKE_CXX_COMPILER:FILEPATH={shutil.which('true')}\nCMAKE_BUILD_TYPE:STRING=Release\n"
        "CMAKE_CXX_FLAGS:STRING=-march=native\nCMAKE_CXX_FLAGS_RELEASE:STRING=-O3 -DNDEBUG\n"
    )
    assert guard.toolchain.of_cmake(tmp_path)["flags"] == "Release: -march=native -O3 -DNDEBUG"
    told = guard.toolchain.python()
    assert told["numpy"].startswith(np.__version__)
    assert told["python"].startswith(sys.version.split()[0])
    with pytest.raises(guard.callgrind.GuardError, match="no-such-compiler"):
        guard.toolchain.compiler("no-such-compiler")


def test_the_command_runs_as_the_readme_says():
    command = [sys.executable, str(ROOT / "benchmarks" / "instructions"), "--update", "--because", " "]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    wanted = "expected a reason" if shutil.which("valgrind") else "valgrind is not installed"
    assert (ran.returncode, wanted in ran.stderr) == (2, True), json.dumps(ran.stderr)
