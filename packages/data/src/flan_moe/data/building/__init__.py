"""The steps of a build: plan, pieces per task in worker processes, merging, evaluation."""
