"""The names that code of the DC/DSA/DM family imports from its networks, handed on from ddm."""

from ddm.networks import *  # noqa: F403
