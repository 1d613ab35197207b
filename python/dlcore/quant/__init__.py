"""Formats of quantised weights and caches."""
