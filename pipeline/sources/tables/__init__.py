"""Tables and records, row by row."""
