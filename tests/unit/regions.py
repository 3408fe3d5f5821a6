"""Small regions for the structures and the lists of words."""

from plinius.pm.medium import PAGE
from plinius.pm.region import Region, format_region
from plinius.testing import PlainMedium

TWIN = 64 * 1024


def plain(twin_bytes: int = TWIN) -> Region:
    medium = PlainMedium(bytes(PAGE + 2 * twin_bytes))
    format_region(medium, twin_bytes)
    return Region(medium, "r")
