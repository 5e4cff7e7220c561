"""Efficiencies of a place from measured rows: least squares of logarithms, robust to outliers, drawn to usual figures where rows say
little."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from splitinference.core.cost.fitting.catalogue import Nominal
from splitinference.core.cost.fitting.rows import Models, Phase, Row, known, place_of, predicted_ms
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency

COVERED = 0.9
"""Share of the rows that the spread covers."""
FEWEST = 2
"""Rows of one phase from which figures are fitted; of fewer, nothing is learned of the phase."""
_NOISE = 0.08
"""Errors of this size (in logarithms) are usual; far larger ones count with their size alone, not with its square."""
_USUAL = {
    "compute": (0.6, 0.5, 0.01, 2.0),
    "bandwidth": (0.8, 0.5, 0.01, 1.1),
    "attention": (0.5, 0.8, 0.01, 4.0),
    "launch_ms": (0.0, 2.0, 1e-7, 1e4),
    "dequantized_per_s": (1e12, 3.0, 1e6, 1e18),
}
"""Of each figure: what it usually is, how far from that it may well be (in logarithms), the least and the most. Launches: see `_start`."""
_SAME_BANDWIDTH = 0.15
"""Prefill and decode read the same weights, so their shares of the bandwidth are taken to be as near as this, in logarithms."""


def fitted(rows: Sequence[Row], models: Models, nominal: Nominal, source: str = "") -> Efficiency:
    """The efficiency that fits these rows of one processor and engine. A phase with fewer than FEWEST rows keeps the default figures.

    Needs scipy. Raises ValueError for rows of unknown models, and where both phases have too few rows.
    """
    known(rows, models)
    of = {phase: [row for row in rows if row.phase == phase] for phase in ("decode", "prefill")}
    if all(len(found) < FEWEST for found in of.values()):
        raise ValueError(f"{len(rows)} rows are too few: at least {FEWEST} of one phase are needed")
    decode, _ = _phase(of["decode"], models, nominal, "decode", None)
    bandwidth = decode.bandwidth if decode.spread is not None else None
    prefill, rate = _phase(of["prefill"], models, nominal, "prefill", bandwidth)
    return Efficiency(prefill=prefill, decode=decode, dequantized_per_s=rate, source=source)


def _phase(
    rows: list[Row], models: Models, nominal: Nominal, phase: Phase, bandwidth: float | None
) -> tuple[PhaseEfficiency, float | None]:
    if len(rows) < FEWEST:
        return PhaseEfficiency(), None
    quantized = phase == "prefill" and any(layer.quantized_weights for row in rows for _, layer in models[row.model])
    usual = dict(_USUAL)
    if bandwidth is not None:
        usual["bandwidth"] = (bandwidth, _SAME_BANDWIDTH, *_USUAL["bandwidth"][2:])
    usual["launch_ms"] = (_start(rows, models), *_USUAL["launch_ms"][1:])
    names = [name for name in usual if quantized or name != "dequantized_per_s"]
    middle, width, least, most = (np.array(column) for column in zip(*(usual[name] for name in names), strict=True))
    low, high, centre = np.log(least), np.log(most), np.log(middle)

    def efficiency(values: Any) -> Efficiency:
        found = {name: float(value) for name, value in zip(names, np.clip(np.exp(values), least, most), strict=True)}
        rate = found.pop("dequantized_per_s", None)
        return Efficiency.model_validate({phase: found, "dequantized_per_s": rate})

    def errors(values: Any) -> Any:
        site = place_of(nominal, efficiency(values))
        return np.array([math.log(predicted_ms(row, models, site) / row.ms) for row in rows])

    def residuals(values: Any) -> Any:
        each = errors(values) / _NOISE
        robust = np.sign(each) * np.sqrt(2.0 * (np.sqrt(1.0 + each * each) - 1.0))
        return np.concatenate([robust, (values - centre) / width])

    best = _least_squares()(residuals, np.clip(centre, low + 1e-3, high - 1e-3), bounds=(low, high)).x
    reached = efficiency(best)
    spread = float(np.expm1(np.quantile(np.abs(errors(best)), COVERED)))
    rounded = {name: _rounded(value) for name, value in getattr(reached, phase).model_dump(exclude={"spread"}).items()}
    rate = None if reached.dequantized_per_s is None else _rounded(reached.dequantized_per_s)
    return PhaseEfficiency(**rounded, spread=round(spread, 3)), rate


def _start(rows: Sequence[Row], models: Models) -> float:
    """A small share of the quickest row, for each of its layers: what launches take if they are few of it."""
    return max(1e-6, 0.03 * min(row.ms / sum(count for count, _ in models[row.model]) for row in rows))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _least_squares() -> Callable[..., Any]:
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise ValueError("fitting needs scipy: install splitinference[calibrate]") from None
    return least_squares  # type: ignore[no-any-return]
