"""The application that benchmarks.apps measures, in each framework; their servers import these."""
