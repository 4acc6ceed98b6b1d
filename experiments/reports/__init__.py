"""Pictures and pages of the committed records; `python -m experiments.reports`."""
