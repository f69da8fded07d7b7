"""SeMoBridge's closed-form map."""

from semobridge_ext.bridging.closed_form import Bridge, bridge, use

__all__ = ["Bridge", "bridge", "use"]
