"""What a data directory consists of, in numbers and plots."""
