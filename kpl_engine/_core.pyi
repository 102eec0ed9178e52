from typing import Any

import numpy as np
import numpy.typing as npt

_Matrix = npt.NDArray[np.floating[Any]]
_Rows = npt.NDArray[np.float64]
_Record = tuple[int, int, float, float, bool, bool, float, int, float, float]
_Labels = _Rows | tuple[int, float, float, int, npt.NDArray[np.float64] | None, float]

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def refine_labels(
    similarities: _Matrix,
    labels: _Matrix,
    method: str,
    tau_t: float,
    gamma: float,
    iters: int,
    prior: _Rows | None,
) -> bool: ...
def select_text_proxies(
    features: npt.NDArray[np.float32],
    embeddings: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int64],
    k: int,
    longest: float,
    threads: int,
    scores: _Rows,
    kept: npt.NDArray[np.int64],
    proxies: npt.NDArray[np.float32],
) -> bool: ...
def rows_fit(features: npt.NDArray[np.float32], longest: float, threads: int) -> bool: ...
def run_dual(
    X: _Matrix,
    T: _Matrix,
    P: _Rows,
    W: _Rows,
    Z: _Rows,
    lr: float,
    tau_i: float,
    iters: int,
    max_drift: float,
    early_exit: bool,
    movement: float,
    threads: int,
) -> _Record: ...
def run_primal(
    X: _Matrix,
    T: _Matrix,
    P: _Rows,
    W: _Rows,
    Z: _Rows,
    lr: float,
    tau_i: float,
    iters: int,
    max_drift: float,
    early_exit: bool,
    movement: float,
    threads: int,
) -> _Record: ...
def measure_multiply_adds() -> float: ...
def measure_exponentials() -> float: ...
def measure_reads(bytes: int) -> float: ...
def multiply_rows(X: _Matrix, T: _Matrix, out: _Rows) -> None: ...
def solve_many(
    problems: list[tuple[_Matrix, _Matrix, _Labels, _Rows, _Rows, float, float, int, float, float, bool, int]],
    threads: int,
) -> list[_Record]: ...
def moments(X: _Matrix, P: _Rows, mean: _Rows, XtP: _Rows, threads: int) -> float: ...
def fixed_point(
    X: _Matrix,
    P: _Rows,
    mean: _Rows,
    XtP: _Rows,
    W: _Rows,
    tau_i: float,
    tolerance: float,
    max_corrections: int,
    threads: int,
) -> tuple[int, int, float]: ...
def finish(
    X: _Matrix,
    W: _Rows,
    scale: float,
    proxies: npt.NDArray[np.float32],
    discriminants: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    undecided: npt.NDArray[np.bool_],
    threads: int,
) -> bool: ...
def squared_lengths(X: _Matrix, lengths: _Rows, threads: int) -> None: ...
