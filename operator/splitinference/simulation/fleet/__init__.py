"""Controllers of a whole fleet on published traces of requests: how many pipelines, of which kind, at which clocks."""
