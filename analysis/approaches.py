"""What methods leave out, and by what rule: the groups in which figures show them, as the records themselves say."""

from __future__ import annotations

from typing import Any

# Approach (methods/engine/method.py declares each method's) -> the title of its panel, in the order of panels.
TITLES = {
    "threshold": "whole steps, by a threshold",
    "schedule": "on a fixed schedule",
    "blocks": "blocks of a step",
    "attention": "attention, guidance branches",
}
OTHER = "other"
# For records too old to say, by the method's name.
OLDER = {
    "adacache": "threshold",
    "controlled": "threshold",
    "dbcache": "blocks",
    "easycache": "threshold",
    "fastercache": "attention",
    "fewer_steps": "schedule",
    "first_block_cache": "blocks",
    "fora": "schedule",
    "magcache": "threshold",
    "none": "schedule",
    "pab": "attention",
    "planned": "schedule",
    "precisecache": "threshold",
    "replay": "schedule",
    "seacache": "threshold",
    "taylorseer": "schedule",
    "teacache": "threshold",
    "uniform": "schedule",
}


def approach_of(record: dict[str, Any]) -> str:
    """The approach of a record's method; "other" for a record that does not say and whose method is not known here."""
    return str(record.get("approach") or OLDER.get(record["recipe"]["method"]["name"], OTHER))
