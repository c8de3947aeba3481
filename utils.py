"""The names that code of the DC/DSA/DM family imports from its utils, handed on from ddm."""

from ddm.compat import *  # noqa: F403
