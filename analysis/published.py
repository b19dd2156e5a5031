"""Published numbers, from pcbench/paper/*.csv: the paper's tables 1 to 4 (table1 … table4) and its peers' (peers)."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

TABLES = ("table1", "table2", "table3", "table4", "peers")


def published(name: str) -> pd.DataFrame:
    """One of TABLES, a row a printed row with its `source`: MACs in P, VBench in %, latency in seconds."""
    with files("pcbench").joinpath("paper", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, na_values=[""])


def preset(method: str, fields: dict) -> str:
    """The name of a record's method as Table 1 has it: PreciseCache's settings are base, turbo and flash there.

    Read from a record's fields alone, so that no torch is needed; pcbench.paper.PRESETS are the settings themselves.
    Any other setting of PreciseCache is "precisecache". What a trial is compared with is left open by the paper.
    """
    if method != "precisecache" or fields.get("reuse", "prediction") != "prediction":
        return method
    cached = (fields.get("block_cache_rate", 0.0), fields.get("block_cache_steps", 3))
    known = {(0.5, 0.0): "base", (0.7, 0.0): "turbo", (0.7, 0.4): "flash"}
    found = known.get((fields.get("alpha", 0.0), cached[0]), method)
    return method if found == "flash" and cached[1] != 3 else found
