"""Benchmarks of the compiler and of the loaded program; `make bench` runs them."""
