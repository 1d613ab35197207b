"""Membership (dlslime-ctrl) and systems of several processes on one machine."""
