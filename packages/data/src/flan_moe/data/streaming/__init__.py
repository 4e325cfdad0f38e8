"""From a stored directory, near or far, to batches: a weighted mixture that resumes exactly."""
