"""The page: a read-only look at nodes, pipelines, requests and decisions in a browser.

`document` and `figures` say what the page shows (pure). `sources` read it from a cluster, a file or a simulation. `feed` keeps the newest
state for all browsers, `access` decides who sees what, `what_if` asks the planner, and `server` puts them behind HTTP.
"""
