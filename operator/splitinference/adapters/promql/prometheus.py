"""Prometheus: the `Metrics` of the ports. What it does not say is never zero: it is missing, and `problem` or `notes` say why."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from urllib3.util.retry import Retry

from splitinference.adapters.failures import in_words
from splitinference.adapters.promql.prometheus_access import (
    BoundedSession,
    Credentials,
    CredentialsError,
    RefusedError,
    TooLargeError,
    in_address,
    masked,
    read_credentials,
    shown,
)
from splitinference.adapters.promql.queries import AGE, BY_LINK, BY_NODE, BY_POD, KIND_LABEL, NAME, SETS, VALUE, Queries, Query, own
from splitinference.controller.ports import Sample, Samples, Unusable
from splitinference.settings import Settings

_LONGEST = 512
"""Characters of a label that are kept: names of Kubernetes have at most 253."""


class PrometheusMetrics:
    """Implements `Metrics`. Nothing is tried twice: the next pass is soon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = settings.prometheus_url.rstrip("/")
        self._url = shown(self._address)
        self._most_bytes = settings.prometheus_max_bytes
        self._seconds = (settings.metrics_window_seconds, settings.link_max_age_seconds)
        self._timeout = settings.prometheus_timeout_seconds
        self._queries = chosen(settings)

    def node_cpu_cores(self) -> Samples:
        """Cores in use on each node."""
        return self._ask(self._queries.node_cpu_cores)

    def segment_cpu_cores(self) -> Samples:
        """Cores in use by each segment pod."""
        return self._ask(self._queries.segment_cpu_cores)

    def node_memory_available_bytes(self) -> Samples:
        """Memory available on each node; nothing in the cadvisor set."""
        return self._ask(self._queries.node_memory_available_bytes)

    def links_mbps(self) -> Samples:
        """Bandwidth by source/target; nothing where neither segments nor probes have measured."""
        return self._ask(self._queries.links_mbps)

    def links_rtt_ms(self) -> Samples:
        """Round trip by source/target; nothing where neither segments nor probes have measured."""
        return self._ask(self._queries.links_rtt_ms)

    def node_gpu_used(self) -> Samples:
        """Share of each node's GPU time that is used."""
        return self._ask(self._queries.node_gpu_used)

    def node_gpu_used_by_others(self) -> Samples:
        """The same, GPUs of our segments' containers left out."""
        return self._ask(self._queries.node_gpu_used_by_others)

    def node_watts(self) -> Samples:
        """Power of each node's processors, as far as something exports it."""
        return self._ask(self._queries.node_watts)

    def node_cpu_waiting(self) -> Samples:
        """Share of time in which some task of each node waited for a processor."""
        return self._ask(self._queries.node_cpu_waiting)

    def node_cpu_limited(self) -> Samples:
        """Share of time in which limits of their own held back containers of each node."""
        return self._ask(self._queries.node_cpu_limited)

    def segment_cpu_waiting(self) -> Samples:
        """The same of each segment pod."""
        return self._ask(self._queries.segment_cpu_waiting)

    def segment_cpu_throttled(self) -> Samples:
        """Share of periods in which a CPU limit held back each segment pod."""
        return self._ask(self._queries.segment_cpu_throttled)

    def _ask(self, query: Query) -> Samples:
        if not query.value:
            return Samples()
        if not self._address:
            return Samples(problem="no Prometheus is set: SPLITINFERENCE_PROMETHEUS_URL is empty")
        secrets = in_address(self._address)
        try:
            credentials = read_credentials(self._settings)
            secrets += credentials.secrets
            answer = self._answer(query.text(*self._seconds, self._settings.prometheus_selector), credentials)
        except CredentialsError as error:
            return Samples(problem=f"{error}: Prometheus is not queried", reason="CredentialsMissing")
        except Exception as error:
            found = _failed(error, self._url, self._timeout, self._most_bytes)
            if found is None:
                raise
            return found.model_copy(update={"problem": masked(found.problem, secrets)[:500]})
        return samples(answer, query.by, query.told)

    def _answer(self, query: str, credentials: Credentials) -> object:
        # A session of its own for each question: requests' sessions are not made for several threads at once.
        with BoundedSession(self._most_bytes, self._timeout) as session:
            session.verify, session.cert = credentials.verify, credentials.client
            server = PrometheusConnect(
                url=self._address,
                headers=credentials.headers,
                auth=credentials.auth,
                retry=Retry(0, read=False),
                timeout=self._timeout,
                session=session,
            )
            return server.custom_query(query, params={"timeout": f"{round(self._timeout * 1000)}ms"})


def _failed(error: Exception, url: str, timeout: float, most_bytes: int) -> Samples | None:
    """Why there is no answer, in words that are the same each time; None for an error that is one of ours. Secrets are not masked yet."""
    match error:
        case RefusedError(status=401 | 403 as status):
            text = f"Prometheus at {url} refused the operator's credentials ({status}): check prometheus.auth"
            return Samples(problem=f"{text}; it said: {error.said}", reason="CredentialsRefused")
        case RefusedError(status=status) if 300 <= status < 400:
            text = f"Prometheus at {url} redirects to {shown(error.location)} ({status}), which is not followed"
            return Samples(problem=f"{text}: is it a page to log in, or another address to be set?")
        case RefusedError(status=status):
            return Samples(problem=f"Prometheus at {url} refused a query ({status}): {error.said}")
        case TooLargeError():
            return Samples(problem=f"Prometheus at {url} answered a query with more than {most_bytes >> 20} MiB: does the query aggregate?")
        case requests.exceptions.SSLError():
            text = f"the certificate of Prometheus at {url} is not trusted, or the connection is not TLS: {in_words(error)}"
            return Samples(problem=f"{text}; prometheus.auth.caSecret names a Secret with its CA", reason="CertificateNotTrusted")
        case requests.Timeout():
            return Samples(problem=f"Prometheus at {url} did not answer within {timeout:g} s")
        case requests.exceptions.InvalidURL() | requests.exceptions.MissingSchema() | requests.exceptions.InvalidSchema():
            return Samples(problem=f"prometheus.url is no address of the form http://host:port: {url}")
        case requests.RequestException():
            return Samples(problem=f"Prometheus at {url} cannot be reached: {in_words(error)}")
        case ValueError() | KeyError() | TypeError():
            return Samples(problem=f"what answers at {url} is not Prometheus")
    return None


def chosen(settings: Settings) -> Queries:
    """The set of the settings, with the user's own queries in place of the set's."""
    base = SETS[settings.query_set]

    def pick(text: str, query: Query, by: tuple[str, ...]) -> Query:
        return own(text, by) if text else query

    return Queries(
        node_cpu_cores=pick(settings.query_node_cpu_cores, base.node_cpu_cores, BY_NODE),
        segment_cpu_cores=pick(settings.query_segment_cpu_cores, base.segment_cpu_cores, BY_POD),
        node_memory_available_bytes=pick(settings.query_node_memory_available_bytes, base.node_memory_available_bytes, BY_NODE),
        links_mbps=pick(settings.query_links_mbps, base.links_mbps, BY_LINK),
        links_rtt_ms=pick(settings.query_links_rtt_ms, base.links_rtt_ms, BY_LINK),
        node_gpu_used=pick(settings.query_node_gpu_used, base.node_gpu_used, BY_NODE),
        node_gpu_used_by_others=pick(settings.query_node_gpu_used_by_others, base.node_gpu_used_by_others, BY_NODE),
        node_watts=pick(settings.query_node_watts, base.node_watts, BY_NODE),
        node_cpu_waiting=pick(settings.query_node_cpu_waiting, base.node_cpu_waiting, BY_NODE),
        node_cpu_limited=pick(settings.query_node_cpu_limited, base.node_cpu_limited, BY_NODE),
        segment_cpu_waiting=pick(settings.query_segment_cpu_waiting, base.segment_cpu_waiting, BY_POD),
        segment_cpu_throttled=pick(settings.query_segment_cpu_throttled, base.segment_cpu_throttled, BY_POD),
    )


MOST_SERIES = 50_000
"""An answer with more series is none: each takes memory and time in every pass. 150 nodes have 45,000 links, both ways."""


def samples(answer: object, by: Sequence[str], told: Sequence[str] = ()) -> Samples:
    """Prometheus' vector → samples by name. A name with several series, or without an age, is left out and noted; NaN is None. With `told`,
    series that differ in one of these labels are apart, samples have the labels, and what is left out is `unusable`.

    Of several ages the one that is least to be believed counts: a negative one (a sample from the future), else the oldest.
    """
    if not isinstance(answer, list):
        return Samples(problem="Prometheus answered with something other than a vector")
    if len(answer) > 2 * MOST_SERIES:
        return Samples(problem=f"Prometheus answered with {len(answer)} series, more than {2 * MOST_SERIES}: does the query aggregate?")
    found: dict[str, dict[_Labels, list[float]]] = {VALUE: defaultdict(list), AGE: defaultdict(list)}
    machines: dict[tuple[str, str], set[str]] = defaultdict(set)
    notes: list[str] = []
    for series in answer:
        read = _read(series, by, told)
        if read is None:
            notes.append(f"a series without {' and '.join(by or ('a node',))}, or without a number, was ignored")
            continue
        kind, labels, number = read
        if kind == NAME:
            machines[_scraped(labels)].add(dict(labels).get("nodename", ""))
        else:
            found[kind][labels].append(number)
    by_name: dict[str, Sample] = {}
    unusable: list[Unusable] = []
    for labels, values in sorted(found[VALUE].items()):
        name = "/".join(value for label, value in labels if label in by) if not told else " ".join("=".join(pair) for pair in labels)
        ages = [age for age in found[AGE].get(labels, []) if math.isfinite(age)]
        if len(values) > 1 or not ages:
            why = (
                f"{len(values)} series where one was expected, so none is used"
                if len(values) > 1
                else "its age is unknown, so it is not used"
            )
            if told:
                unusable.append(Unusable(labels=dict(labels), why=why))
            else:
                notes.append(f"{name}: {why}")
        else:
            value, said = values[0] if math.isfinite(values[0]) else None, dict(labels) if told else {}
            if told and len(own := machines.get(_scraped(labels), set())) == 1:
                said["nodename"] = next(iter(own))
            by_name[name] = Sample(value=value, age_seconds=min(ages) if min(ages) < 0 else max(ages), labels=said)
    return Samples(by_name=by_name, unusable=tuple(unusable), notes=tuple(dict.fromkeys(notes)))


_Labels = tuple[tuple[str, str], ...]


def _scraped(labels: _Labels) -> tuple[str, str]:
    """Who was scraped, and by which job: a machine's own name is in a series beside its figures."""
    found = dict(labels)
    return found.get("instance", ""), found.get("job", "")


def _read(series: Any, by: Sequence[str], told: Sequence[str]) -> tuple[str, _Labels, float] | None:
    try:
        labels: Mapping[str, str] = series["metric"]
        kind = labels[KIND_LABEL]
        wanted = (*by, *told, *(("nodename",) if kind == NAME else ()))
        kept = tuple((label, str(labels[label])[:_LONGEST]) for label in wanted if labels.get(label))
        if kind not in (VALUE, AGE, NAME) or not all(labels[label] for label in by) or not kept:
            return None
        return kind, kept, float(series["value"][1])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
