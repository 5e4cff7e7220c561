"""CP-SAT as all our models use it: whole numbers, one worker, one seed, so that the same model gets the same answer."""

from ortools.sat.python import cp_model


class Model(cp_model.CpModel):  # type: ignore[misc] # ortools comes without types
    """A CP-SAT model without the deprecated names of its methods: to add those takes longer than to solve a small model."""

    def _add_pre_pep8_methods(self) -> None:
        """Nothing is added."""


def solver(seconds: float, *, tiny: bool = False) -> cp_model.CpSolver:
    """A solver with a time limit; `tiny`: for a model that presolving would not make quicker."""
    made = cp_model.CpSolver()
    made.parameters.num_workers = 1
    made.parameters.random_seed = 1
    made.parameters.max_time_in_seconds = max(0.1, seconds)
    if tiny:
        made.parameters.cp_model_presolve = False
        made.parameters.cp_model_probing_level = 0
        made.parameters.symmetry_level = 0
    return made
