"""Every peer side by side: ``python -m benchmarks.core``, ``python -m benchmarks.memory``."""
