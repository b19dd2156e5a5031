"""Running a pipeline: samples and their videos, latency, one transformer split over several GPUs."""
