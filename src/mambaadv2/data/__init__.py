"""Data sets: from a folder to a list of records, and a synthetic data set to try things with."""
