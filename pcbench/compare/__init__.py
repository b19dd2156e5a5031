"""Fidelity of anybody's videos: two or more folders of mp4 files, compared by file name."""
