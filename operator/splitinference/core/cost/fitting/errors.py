"""How wrong the cost model is on measured rows: its form of before beside this one, with figures of increasing knowledge.

Every row is predicted from rows that it is not one of, but for the method `catalogue`, whose entries were fitted to all rows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from pydantic import Field

from splitinference.core.cost.fitting.catalogue import Catalogue, Nominal, typical
from splitinference.core.cost.fitting.fit import fitted
from splitinference.core.cost.fitting.rows import Models, Phase, Row, known, place_of, predicted_ms
from splitinference.core.values.efficiency import Efficiency
from splitinference.core.values.profile import LayerKind
from splitinference.core.values.value import Value

METHODS = {
    "data sheet": "the larger of FLOPs and bytes over nominal figures: the form of before, without calibration",
    "one factor": "the same times one factor per product and engine, the median of the other half's decode rows",
    "unseen product": "this form with the medians of the same engine on other products",
    "catalogue": "this form with the catalogue's entry, which was fitted to these rows too",
    "other half": "this form, fitted to the other half of the product's rows",
}
"""What each method knows."""
Predict = Callable[[Row], float | None]


class Errors(Value):
    """Errors of one method on one group of rows, as shares of the measured times; below 0: predicted too short."""

    group: str
    phase: Phase
    method: str
    rows: int = Field(ge=1)
    median: float = Field(ge=0, description="of absolute errors")
    lowest: float
    highest: float

    @property
    def worst(self) -> float:
        """The largest absolute error."""
        return max(abs(self.lowest), abs(self.highest))


def errors(rows: Sequence[Row], models: Models, catalogue: Catalogue, by: Callable[[Row], str]) -> list[Errors]:
    """Errors by group, phase and method, in this order; a method is left out where it knows nothing of the rows.

    Needs scipy. Raises ValueError for rows of unknown models, and KeyError for products without nominal figures.
    """
    known(rows, models)
    found: dict[tuple[str, Phase, str], list[float]] = defaultdict(list)
    for place in sorted({(row.processor, row.engine) for row in rows}):
        mine = [row for row in rows if (row.processor, row.engine) == place]
        halves = (mine[::2], mine[1::2])
        for half, other in (halves, halves[::-1]):
            for method, predict in _methods(other, models, catalogue, *place):
                for row in half:
                    predicted = predict(row)
                    if predicted is not None:
                        found[by(row), row.phase, method].append(predicted / row.ms - 1.0)
    return [
        Errors(group=group, phase=phase, method=method, rows=len(each), median=median(map(abs, each)), lowest=min(each), highest=max(each))
        for (group, phase, method), each in sorted(found.items(), key=lambda item: (*item[0][:2], list(METHODS).index(item[0][2])))
    ]


def _methods(other: Sequence[Row], models: Models, catalogue: Catalogue, processor: str, engine: str) -> Iterable[tuple[str, Predict]]:
    nominal = catalogue.processors[processor]
    yield "data sheet", lambda row: roofline_ms(row, models, nominal)
    decode = [row.ms / roofline_ms(row, models, nominal) for row in other if row.phase == "decode"]
    if decode:
        factor = median(decode)
        yield "one factor", lambda row: factor * roofline_ms(row, models, nominal)
    others = [entry for entry in catalogue.entries if entry.engine == engine and entry.processor != processor]
    if others:
        yield "unseen product", _with(typical(others), models, nominal)
    own = next((entry for entry in catalogue.entries if (entry.processor, entry.engine) == (processor, engine)), None)
    if own is not None:
        yield "catalogue", _with(own.efficiency, models, nominal)
    try:
        yield "other half", _with(fitted(other, models, nominal), models, nominal)
    except ValueError:
        return


def _with(efficiency: Efficiency, models: Models, nominal: Nominal) -> Predict:
    site = place_of(nominal, efficiency)

    def predict(row: Row) -> float | None:
        fitted_phase = (efficiency.prefill if row.phase == "prefill" else efficiency.decode).spread is not None
        return predicted_ms(row, models, site) if fitted_phase else None

    return predict


def roofline_ms(row: Row, models: Models, nominal: Nominal) -> float:
    """The form of before: per layer the larger of all FLOPs over FLOP/s and all bytes over bytes/s (Williams et al., CACM 2009)."""
    total = 0.0
    for count, layer in models[row.model]:
        context = (row.tokens - 1) / 2.0 if row.phase == "prefill" else float(row.tokens)
        positions = 1 if row.phase == "decode" or layer.kind is LayerKind.HEAD else row.tokens
        tokens = row.batch * positions
        read = layer.kv_bytes_per_token * (tokens if row.phase == "prefill" else tokens * context)
        flops = tokens * (layer.flops_per_token + layer.flops_per_token_and_context * context)
        total += count * max(flops / nominal.flops_per_s, (layer.weight_bytes + read) / nominal.memory_bandwidth_bytes_per_s)
    return 1e3 * total
