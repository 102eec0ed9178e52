"""Moving-block bootstrap of a sum: latencies that follow one another are alike, and single draws would hide it.

A series of n values is cut into at most 1,024 segments, each the sum of its values. Blocks of b neighbouring segments,
starting anywhere and wrapping round, are drawn with replacement until as long as the series (the circular form, which
weighs every value equally). Up to 1,024 values a segment is one value and this is the textbook method; above, a block
is never shorter than n / 1024 values, which costs little: 1,024 pieces tell a spread to 1 / sqrt(2 * 1024) = 2 %. So
time and memory do not grow with n, but for one pass over the values.

Sources: Künsch, Ann. Statist. 17 (1989) 1217; Politis and Romano (1992) on the circular form; the block length is the
rule of Politis and White, Econometric Reviews 23 (2004) 53, as corrected by Patton, Politis and White, 28 (2009) 372.
"""

from __future__ import annotations

import math

import numpy as np

from kpl_engine.arrays import Float64

__all__ = ["DRAWS", "Z95", "block_length", "resampled_sums"]

DRAWS = 4000  # Holm over 40 rows asks for p below 0.00125; the smallest that is told apart is 2 / 4001
Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %
_SEGMENTS = 1024
_FEWEST_BLOCKS = 8  # independent pieces below which the spread between them says too little
_CHUNK = 500  # draws at once: 500 x 1,024 sums are 4 MB


def resampled_sums(values: Float64, rng: np.random.Generator, level: Float64 | None = None) -> Float64 | None:
    """`DRAWS` resampled sums of ``values (n,)``, less the sum itself; None where the data are too few to say.

    ``level (n,)``, if given, has a say in the length of the blocks: ten values in a tail cannot show how long they
    stay together, the level of all values can.

    Too few is fewer than 8 blocks: 8 values if they are independent, more if they are alike for long. The deviations
    are widened by ``t / z * sqrt(m / (m - 1))`` for m blocks, since a bootstrap of few is too narrow
    (Hesterberg, The American Statistician 69 (2015) 371, section 5.3).
    """
    segments = _segments(values)
    count = len(segments)
    length = block_length(segments)
    if level is not None:
        length = max(length, block_length(_segments(level)))
    blocks = count / length
    if blocks < _FEWEST_BLOCKS:
        return None
    running = np.concatenate(([0.0], np.cumsum(np.concatenate((segments, segments[: length - 1])))))
    sums = running[length:] - running[:-length]
    drawn = math.ceil(blocks)
    found = np.empty(DRAWS)
    for start in range(0, DRAWS, _CHUNK):
        stop = min(start + _CHUNK, DRAWS)
        # Two bytes hold a place among 1,024, and drawing them is most of the time.
        found[start:stop] = sums[rng.integers(0, count, size=(stop - start, drawn), dtype=np.uint16)].sum(axis=1)
    # The last block would be cut; drawing it whole makes the sum longer by this.
    return found * (math.sqrt(blocks / drawn) * _widening(blocks))


def block_length(series: Float64) -> int:
    """Segments in a block: where the autocorrelation of ``series (G,)`` has died out decides.

    ``b = (2 g^2 / D * G)^(1/3)`` with ``g = Σ λ(k/M) |k| R(k)``, ``D = 4/3 (Σ λ(k/M) R(k))^2``, autocovariances R, the
    flat-top window λ, and M twice the lag after which correlations stay within ``2 sqrt(log10(G) / G)``. 1 for
    independent values. Doubled where it is above 1: the rule is for the least mean squared error of the variance, whose
    bias is downwards, and an interval suffers more from bias than from variance.
    """
    count = len(series)
    centred = series - series.mean()
    longest = min(count - 1, max(5, math.ceil(3 * math.sqrt(count))))
    covariances = _autocovariances(centred, longest)
    if longest < 1 or covariances[0] <= 0.0:
        return 1
    last = _last_correlated(covariances / covariances[0], count)
    if last == 0:
        return 1
    lags = np.arange(1, min(2 * last, longest) + 1)
    weights = np.minimum(1.0, 2.0 * (1.0 - lags / (2.0 * last)))
    spread = covariances[0] + 2.0 * float(weights @ covariances[lags])
    slope = 2.0 * float((weights * lags) @ covariances[lags])
    if slope <= 0.0 or spread <= 0.0:  # neighbours differ more than strangers do: single draws are too wide, not narrow
        return 1
    rule: float = (1.5 * (slope / spread) ** 2 * count) ** (1.0 / 3.0)
    return min(math.ceil(2.0 * rule), count)


def _segments(values: Float64) -> Float64:
    """Sums of at most 1,024 runs of neighbouring deviations from the mean."""
    centred = values - values.mean()
    if len(values) <= _SEGMENTS:
        return np.asarray(centred)
    edges = np.arange(_SEGMENTS) * len(values) // _SEGMENTS
    found: Float64 = np.add.reduceat(centred, edges)
    return found


def _autocovariances(centred: Float64, longest: int) -> Float64:
    size = 1 << (2 * len(centred) - 1).bit_length()  # zeros behind the series: no wrapping
    spectrum = np.fft.rfft(centred, size)
    found: Float64 = np.fft.irfft(np.abs(spectrum) ** 2, size)[: longest + 1] / len(centred)
    return found


def _last_correlated(correlations: Float64, count: int) -> int:
    """The smallest lag after which several in a row are within the noise; the longest where none is."""
    quiet = np.abs(correlations[1:]) < 2.0 * math.sqrt(math.log10(max(count, 2)) / count)
    needed = max(5, math.ceil(math.sqrt(math.log10(max(count, 2)))))
    run = 0
    for lag, is_quiet in enumerate(quiet, start=1):
        run = run + 1 if is_quiet else 0
        if run == needed:
            return lag - needed
    return len(quiet) - run


def _widening(blocks: float) -> float:
    """``t_(m-1) / z * sqrt(m / (m - 1))``; t by Cornish and Fisher's expansion, to 0.1 % from 7 degrees of freedom."""
    z, free = Z95, blocks - 1.0
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return t / z * math.sqrt(blocks / free)
