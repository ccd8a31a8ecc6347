"""Measuring: interleaved timing, peak memory, the result file, comparison of results and of commits, charts."""
