"""The names that DC/DSA/DM scripts import from networks, re-exported from ddm."""

from ddm.networks import *  # noqa: F403
