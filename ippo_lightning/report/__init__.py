"""Reads the folders of runs; writes tables, figures and one HTML file."""

from ippo_lightning.report.comparisons import gather_runs, read_comparison, with_roles
from ippo_lightning.report.curves import CURVES, Curve, plot_curve
from ippo_lightning.report.health import health
from ippo_lightning.report.histogram import plot_score_histogram
from ippo_lightning.report.plots import plot_results, plot_score_quantiles, plot_time_parts
from ippo_lightning.report.records import Comparison, EpisodeRow, Method, Run
from ippo_lightning.report.runs import read_run
from ippo_lightning.report.summary import summarise
from ippo_lightning.report.tables import results_markdown, results_table
from ippo_lightning.report.writing import report_of, write_report

__all__ = [
    "CURVES",
    "Comparison",
    "Curve",
    "EpisodeRow",
    "Method",
    "Run",
    "gather_runs",
    "health",
    "plot_curve",
    "plot_results",
    "plot_score_histogram",
    "plot_score_quantiles",
    "plot_time_parts",
    "read_comparison",
    "read_run",
    "report_of",
    "results_markdown",
    "results_table",
    "summarise",
    "with_roles",
    "write_report",
]
