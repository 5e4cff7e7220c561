"""From a resource's specification to the core's terms."""
