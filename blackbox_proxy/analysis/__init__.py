"""What the proxy did to finished texts, in numbers: how far it moved every token, which kinds and places it moves most,
what that cost, and what another alpha would have done. Over steps; no model, no file, no pictures.

The analyses are those of the proxy-tuning paper (Liu et al. 2024, arXiv 2401.08565, section 6).
"""

from blackbox_proxy.analysis.candidates import SCALES, Factors, Shown, SweepPoint, Telling, sweep, telling
from blackbox_proxy.analysis.groups import (
    LOW,
    Course,
    Group,
    Moved,
    Summary,
    by_kind,
    by_position,
    by_side,
    course,
    group,
    most_moved,
    summarise,
)
from blackbox_proxy.analysis.places import Kind, Place, chosen_index, kind_of, measure

__all__ = [
    "LOW",
    "SCALES",
    "Course",
    "Factors",
    "Group",
    "Kind",
    "Moved",
    "Place",
    "Shown",
    "Summary",
    "SweepPoint",
    "Telling",
    "by_kind",
    "by_position",
    "by_side",
    "chosen_index",
    "course",
    "group",
    "kind_of",
    "measure",
    "most_moved",
    "summarise",
    "sweep",
    "telling",
]
