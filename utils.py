"""The names that DC/DSA/DM scripts import from utils, re-exported from ddm."""

from ddm.compat import *  # noqa: F403
