"""Gauges whose values are read when Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Values = Mapping[tuple[str, ...], float]


def add_gauge(registry: CollectorRegistry, name: str, help: str, read: Callable[[], float]) -> None:
    """Add a gauge without labels. read: may be called from any thread, and returns at once."""
    add_gauges(registry, name, help, (), lambda: {(): read()})


def add_gauges(
    registry: CollectorRegistry, name: str, help: str, labels: tuple[str, ...], read: Callable[[], Values]
) -> None:
    """Add a gauge with labels. read: returns the value for each set of labels; called as that of `add_gauge`."""
    registry.register(_Read(name, help, labels, read))


class _Read(Collector):
    """A gauge whose values are read at each collection."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...], read: Callable[[], Values]) -> None:
        self._name, self._help, self._labels, self._read = name, help, labels, read

    def describe(self) -> Iterable[Metric]:
        """Return the name without reading a value."""
        return [GaugeMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Read the values."""
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        return [family]
