"""Running a pipeline: samples and their videos, latency, one transformer over several GPUs."""
