"""The condition of the filter before a model: what it skips, and whether the model agrees."""

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.sections.filter_spec import FilterSpec
from splitinference_protocol.report import Filtered, GatewayReport


def filtered(asked: FilterSpec, report: GatewayReport | None) -> Condition:
    """What the gateways say of it; unknown while none says anything."""
    found = report.filter if report is not None else None
    if found is None:
        return Condition(kind=Kind.FILTERED, holds=None, reason="NotReported", message="no gateway has reported on the filter yet")
    agreement = (
        "no row has been compared yet"
        if found.agreement is None
        else f"{100 * found.agreement:.1f} % of the last {found.compared} compared rows"
    )
    if found.open:
        message = (
            f"the filter in {asked.file} opened, so every row runs: the model agreed with it for {agreement}, and at least "
            f"{asked.agreement_percent:g} % is required. Train it again with recent inputs, or remove spec.filter"
        )
        return Condition(kind=Kind.FILTERED, holds=False, reason="AgreementTooLow", message=message)
    if found.problem:
        message = f"the first segment does not use {asked.file}, so every row runs: {found.problem}"
        return Condition(kind=Kind.FILTERED, holds=False, reason="NotUsed", message=message)
    passed = "" if found.pass_rate is None else f"; {100 * found.pass_rate:.1f} % of the rows of the last minute reached the segments"
    what = "are skipped by" if found.mode == "Skip" else "get earlier answers by"
    message = f"rows {what} {asked.file}; the model agrees: {agreement}{passed}"
    return Condition(kind=Kind.FILTERED, holds=True, reason="Filtering", message=message)


def together(reports: list[Filtered]) -> Filtered | None:
    """Of several gateways: rows add up, the agreement is weighted by what was compared, the pass rate by rows; one that opened counts."""
    if not reports:
        return None
    compared = sum(report.compared for report in reports)
    passed = [(report.rows, report.pass_rate) for report in reports if report.pass_rate is not None]
    rows = sum(count for count, _ in passed)
    agreed = sum(report.compared * report.agreement for report in reports if report.agreement is not None)
    return Filtered(
        rows=sum(report.rows for report in reports),
        skipped=sum(report.skipped for report in reports),
        mode=reports[0].mode,
        pass_rate=sum(count * rate for count, rate in passed) / rows if rows else None,
        problem=next((report.problem for report in reports if report.problem), ""),
        compared=compared,
        agreement=agreed / compared if compared else None,
        floor=reports[0].floor,
        open=any(report.open for report in reports),
    )
