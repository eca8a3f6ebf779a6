"""What the figures in the docs are made of: `python -m benchmarks NAME [--json]`. They report; they never judge."""
