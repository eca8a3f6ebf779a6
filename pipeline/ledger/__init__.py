"""Postgres, the truth: every unit of work is a row."""
