"""The clients, each with a program beside this file. The programs run in environments of their own and import nothing of the project."""

from dataclasses import dataclass

PYTHON, NODE = "python", "node"


@dataclass(frozen=True)
class Client:
    """One client. `requirements`: its list of packages, none for what Python has itself; `package`: whose version is told."""

    name: str
    program: str
    package: str = ""
    requirements: str = ""
    kind: str = PYTHON


CLIENTS = (
    Client("openai (Python)", "with_openai", "openai", "openai"),
    Client("openai (Node)", "with_openai", "openai", kind=NODE),
    Client("LangChain", "with_langchain", "langchain-openai", "langchain"),
    Client("LlamaIndex", "with_llamaindex", "llama-index-llms-openai-like", "llamaindex"),
    Client("LiteLLM", "with_litellm", "litellm", "litellm"),
    Client("requests of Open WebUI and Continue", "with_requests"),
    Client("lm-eval", "with_lm_eval", "lm-eval", "lm-eval"),
    Client("tritonclient", "with_tritonclient", "tritonclient", "tritonclient"),
    Client("AIPerf", "with_aiperf", "aiperf", "aiperf"),
)
