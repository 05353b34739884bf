"""Measurements over several runs; each writes a page of docs/results."""
