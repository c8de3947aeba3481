"""The augmentation under the name that code of the DC/DSA/DM family imports."""

from ddm.augment import *  # noqa: F403
