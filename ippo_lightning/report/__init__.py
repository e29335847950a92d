"""Reads the folders of runs; writes tables, figures and one HTML file."""

from ippo_lightning.report.comparisons import gather_runs, read_comparison, with_roles
from ippo_lightning.report.plots import (
    plot_effective_sample_size,
    plot_exact_match,
    plot_iteration_seconds,
    plot_kept_fraction,
    plot_results,
    plot_score_histogram,
    plot_score_quantiles,
    plot_time_parts,
    plot_unfaithful_fraction,
)
from ippo_lightning.report.records import Comparison, EpisodeRow, Method, Run
from ippo_lightning.report.runs import read_run
from ippo_lightning.report.summary import summarise
from ippo_lightning.report.tables import results_markdown, results_table
from ippo_lightning.report.writing import report_of, write_report

__all__ = [
    "Comparison",
    "EpisodeRow",
    "Method",
    "Run",
    "gather_runs",
    "plot_effective_sample_size",
    "plot_exact_match",
    "plot_iteration_seconds",
    "plot_kept_fraction",
    "plot_results",
    "plot_score_histogram",
    "plot_score_quantiles",
    "plot_time_parts",
    "plot_unfaithful_fraction",
    "read_comparison",
    "read_run",
    "report_of",
    "results_markdown",
    "results_table",
    "summarise",
    "with_roles",
    "write_report",
]
