"""What a model is, from the files of its folder: one set of rules for operator, reading pods, segments and `splitinference plan`.

Standard library only, no torch. `headers` is pure and `folder` opens files; the text of both also runs in reading pods. The other modules
are pure: `models` decides whether a model is served, and says why not.
"""
