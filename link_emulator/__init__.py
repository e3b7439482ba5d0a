"""A link between device and cloud, made up: slow, jittery, lossy, and now and then gone.

`model` says what a link does to bytes, without clock or I/O; `proxy` does it to real connections on this machine:

    async with LinkProxy(load_profile("4g"), to="127.0.0.1:50151", seed=1) as proxy:
        ...  # connect to proxy.address
"""

from link_emulator.model import Direction, Link
from link_emulator.profile import Profile, load_profile, profile_names
from link_emulator.proxy import LinkProxy

__all__ = ["Direction", "Link", "LinkProxy", "Profile", "load_profile", "profile_names"]
