"""The regions of an SAE, exactly: power diagrams, cells in the plane and in space, slices, affine pieces, polytopes, statistics."""

from splinterp.geometry.cells import Cell, Cells
from splinterp.geometry.linear_programs import Ball, chebyshev_centre, is_empty
from splinterp.geometry.masses import Entropy, RegionMasses, gaussian_samples, region_masses
from splinterp.geometry.polytopes import (
    Facet,
    HalfSpaces,
    RegionGraph,
    bounding_box,
    facets,
    half_spaces,
    region_graph,
    visited_graph,
)
from splinterp.geometry.power_diagram import PowerDiagram
from splinterp.geometry.regions import Region, Regions, region_of, regions_of
from splinterp.geometry.segments import Piece, SegmentRegions, boundary_along, segment_regions, segments_regions
from splinterp.geometry.slices import Plane, Space, plane_through, principal_plane, principal_space, slice_cells, space_through
from splinterp.geometry.solid_slices import slice_solids
from splinterp.geometry.solids import Solid, Solids
from splinterp.geometry.statistics import RegionStatistics, count_cells, growth, region_statistics

__all__ = [
    "Ball",
    "Cell",
    "Cells",
    "Entropy",
    "Facet",
    "HalfSpaces",
    "Piece",
    "Plane",
    "PowerDiagram",
    "Region",
    "RegionGraph",
    "RegionMasses",
    "RegionStatistics",
    "Regions",
    "SegmentRegions",
    "Solid",
    "Solids",
    "Space",
    "boundary_along",
    "bounding_box",
    "chebyshev_centre",
    "count_cells",
    "facets",
    "gaussian_samples",
    "growth",
    "half_spaces",
    "is_empty",
    "plane_through",
    "principal_plane",
    "principal_space",
    "region_graph",
    "region_masses",
    "region_of",
    "region_statistics",
    "regions_of",
    "segment_regions",
    "segments_regions",
    "slice_cells",
    "slice_solids",
    "space_through",
    "visited_graph",
]
