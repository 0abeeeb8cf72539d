"""Starts, drives and stops the real peers. `scripts/peers.sh` installs them.

Each peer is a context manager that owns its processes: on the way out they are gone, whatever
happened inside. A peer that is missing is a skip with its reason, from `availability.require`.
"""
