"""An emulated link between device and cloud, with delay, jitter, loss, outages and resets.

`model` computes the delay of bytes, without clock or I/O. `proxy` applies it to real connections on this machine:

    async with LinkProxy(load_profile("4g"), to="127.0.0.1:50151", seed=1) as proxy:
        ...  # connect to proxy.address
"""

from link_emulator.model import Direction, Link
from link_emulator.profile import Profile, load_profile, profile_names
from link_emulator.proxy import LinkProxy

__all__ = ["Direction", "Link", "LinkProxy", "Profile", "load_profile", "profile_names"]
