"""Published numbers, from pcbench/paper/*.csv: the paper's tables 1 to 4 (table1 … table4) and its peers' (peers)."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

TABLES = ("table1", "table2", "table3", "table4", "peers")


def published(name: str) -> pd.DataFrame:
    """One of TABLES, one row per printed row with its `source`: MACs in P (1e15), VBench in %, latency in seconds."""
    with files("pcbench").joinpath("paper", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, na_values=[""])
