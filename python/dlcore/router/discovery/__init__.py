"""How the router learns of nodes: one file a way."""

from dlcore.router.discovery.base import Change, Discovery, Join, Leave
from dlcore.router.discovery.ctrl import CtrlDiscovery
from dlcore.router.discovery.static import StaticDiscovery

__all__ = ["Change", "CtrlDiscovery", "Discovery", "Join", "Leave", "StaticDiscovery"]
