"""Experiments: a plan, a task, a report and a picture each, on a core that they share."""
