"""`splitinference simulate --trace azure-2023-conv … --trace-folder DIR`: controllers of a fleet side by side on a published trace."""

from collections.abc import Sequence
from pathlib import Path

from splitinference.simulation.fleet.controllers import controllers
from splitinference.simulation.fleet.request_traces import read_requests
from splitinference.simulation.fleet.run import FleetReport, simulate_fleet

COLUMNS = ("", "in SLO", "energy kWh", "cost", "carbon kg", "moves", "pipelines", "prefix reuse")


def rows(reports: Sequence[FleetReport]) -> list[tuple[str, ...]]:
    """A row of text for each report; energy and cost also against the first one."""
    base = reports[0]
    return [
        (
            report.policy,
            f"{report.within_slo:.2%}",
            f"{report.energy_kwh:.2f} ({report.energy_kwh / base.energy_kwh - 1:+.0%})",
            f"{report.cost:.1f} ({report.cost / base.cost - 1:+.0%})",
            f"{report.carbon_kg:.2f}",
            str(report.moves),
            f"{report.mean_pipelines:.1f}",
            "" if report.reuse is None else f"{report.reuse:.1%}",
        )
        for report in reports
    ]


def run_fleet(name: str, folder: Path, scale: float) -> tuple[list[FleetReport], str]:
    """All controllers on one trace, and a title. Raises RequestTraceError."""
    groups, every_s = read_requests(name, folder, scale)
    reports = [simulate_fleet(groups, every_s, controller) for controller in controllers()]
    return reports, f"{name}, scale {scale:g}: {reports[0].requests:.0f} requests in {groups[-1].at_s / 3600:.1f} h"
