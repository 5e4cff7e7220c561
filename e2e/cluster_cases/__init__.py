"""What real clusters do to the control plane, played on kind: each row is done to a serving resource, watched, and taken back."""
