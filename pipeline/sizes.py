"""Bytes, as people read them."""

from __future__ import annotations


def as_size(count: float) -> str:
    """Such as `1.4 GiB`, `900 B`."""
    value = abs(float(count))
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    sign = "-" if count < 0 else ""
    return f"{sign}{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{sign}{value:.1f} {unit}"
