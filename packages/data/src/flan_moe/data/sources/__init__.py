"""Sources of tasks, raw or templated, divided into training, validation and evaluation."""
