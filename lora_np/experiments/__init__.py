"""Experiments: a plan, a task, a folder that survives anything, a report and a picture each."""
