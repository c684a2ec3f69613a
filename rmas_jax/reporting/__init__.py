"""Reports: a run's results as tables, figures and one HTML page."""

from rmas_jax.reporting.claims import Claim, Finding, check_claims
from rmas_jax.reporting.report import write_report
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import RunFileError
from rmas_jax.reporting.tables import terminal_table

__all__ = [
    "Claim",
    "Finding",
    "Results",
    "RunFileError",
    "check_claims",
    "terminal_table",
    "write_report",
]
