"""What gateway, segments and operator say to each other, in one place: docs/reference/data-plane.md describes it.

`frames` and `meta` are the wire, `route` is the document that the operator writes and the gateway reads, `report` the gateway's account.
No torch, no event loop, no network: every image has this package, and each brings its own way of sending.
"""

VERSION = 1
"""Of the protocol. It changes when a peer of the version before could not read what is sent."""
