"""Read metrics in Prometheus' text format; only the standard library is imported."""

from __future__ import annotations


def read_metrics(text: str) -> dict[str, float]:
    """Return each metric by its name, summed over its labels.

    The sum is meant for counters and gauges of one engine. Buckets of histograms are left out,
    since each of them includes the ones before.

    Raises:
        ValueError: if a value is not a number.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        # A label's value may hold spaces, and braces only where it is quoted.
        series, _, rest = line.rpartition("}") if "{" in line else line.partition(" ")
        name = series.partition("{")[0]
        if not name.endswith("_bucket"):
            # A time may follow the value.
            found[name] = found.get(name, 0.0) + float(rest.split()[0])
    return found
