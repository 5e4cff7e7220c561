"""The names under which the API server knows the resource."""

GROUP = "splitinference.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
PLURAL = "splitinferences"
KIND = "SplitInference"
DEFAULT_CLASS = "default"
