"""The networks under the name that code of the DC/DSA/DM family imports."""

from ddm.networks import *  # noqa: F403
