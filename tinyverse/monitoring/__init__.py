"""Monitoring: what one can look at: status, metrics, plots, reports, the dashboard."""
