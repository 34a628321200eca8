"""Measurements that anyone can repeat; results are kept in RESULTS.md."""
