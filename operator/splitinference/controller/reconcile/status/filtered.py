"""The condition of the filter before a model: what it skips, and whether the model agrees."""

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.sections.filter_spec import FilterSpec
from splitinference_protocol.report import Filtered, GatewayReport


def filtered(asked: FilterSpec, report: GatewayReport | None) -> Condition:
    """What the gateways say of it; unknown while none says anything."""
    found = report.filter if report is not None else None
    if found is None:
        return Condition(kind=Kind.FILTERED, holds=None, reason="NotReported", message="no gateway has reported about the filter yet")
    agreement = (
        "none compared yet" if found.agreement is None else f"{100 * found.agreement:.1f} % of the last {found.compared} compared rows"
    )
    if found.open:
        message = (
            f"the filter in {asked.file} opened, so every row runs: the model agreed with it for {agreement}, and at least "
            f"{asked.agreement_percent:g} % is wanted. Train it again with recent inputs, or remove spec.filter"
        )
        return Condition(kind=Kind.FILTERED, holds=False, reason="AgreementTooLow", message=message)
    message = f"rows are skipped by {asked.file}; the model agrees: {agreement}"
    return Condition(kind=Kind.FILTERED, holds=True, reason="Filtering", message=message)


def together(reports: list[Filtered]) -> Filtered | None:
    """Of several gateways: rows add up, the agreement is weighted by what was compared, and one that opened counts."""
    if not reports:
        return None
    compared = sum(report.compared for report in reports)
    agreed = sum(report.compared * report.agreement for report in reports if report.agreement is not None)
    return Filtered(
        rows=sum(report.rows for report in reports),
        skipped=sum(report.skipped for report in reports),
        compared=compared,
        agreement=agreed / compared if compared else None,
        floor=reports[0].floor,
        open=any(report.open for report in reports),
    )
