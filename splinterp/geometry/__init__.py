"""The regions of an SAE, exactly: power diagrams, cells, slices, affine pieces, statistics."""

from splinterp.geometry.cells import Cell, Cells
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.geometry.regions import Region, Regions, region_of, regions_of
from splinterp.geometry.slices import Plane, plane_through, principal_plane, slice_cells

__all__ = [
    "Cell",
    "Cells",
    "Plane",
    "PowerDiagram",
    "Region",
    "Regions",
    "plane_through",
    "principal_plane",
    "region_of",
    "regions_of",
    "slice_cells",
]
