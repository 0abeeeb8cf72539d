"""Devices by type, one file each; `virtq.drivers` has their twins."""
