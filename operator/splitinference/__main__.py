"""The operator: settings → adapters → passes → handlers → kopf. Which implementation is used for what is chosen here and nowhere else."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import kopf
from kubernetes import client
from prometheus_client import Gauge
from pydantic import ValidationError

from splitinference import __version__
from splitinference.adapters.clock import SystemClock
from splitinference.adapters.fair_solver import FairSolver
from splitinference.adapters.kubernetes.client import connect
from splitinference.adapters.kubernetes.cluster import WatchedCluster
from splitinference.adapters.kubernetes.crd import CrdNotes
from splitinference.adapters.kubernetes.leases import KubeLeases, boot_seconds, healthy, holding, new_identity, wait_to_lead
from splitinference.adapters.kubernetes.own_namespace import OwnNamespace
from splitinference.adapters.peers.certificates import CertificateAuthority, RootSecret
from splitinference.adapters.peers.gateway import GatewayRoutes
from splitinference.adapters.peers.issued_roots import IssuedRoots
from splitinference.adapters.peers.mutual import Peers
from splitinference.adapters.peers.triton import TritonSegments
from splitinference.adapters.profiler import Profiler
from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.adapters.telemetry import ResourceGauges, Telemetry
from splitinference.catalogue import CatalogueError, extended
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.ports import Ports, RefusedError, UnavailableError
from splitinference.controller.reconcile.reconcile import Reconciler
from splitinference.controller.reconcile.upkeep.node_measuring import Measuring
from splitinference.controller.runtime import handlers
from splitinference.controller.runtime.leadership import Claims, Leadership, Watched
from splitinference.controller.runtime.workqueue import Ended, Key, Pass, Passes
from splitinference.core.planner import SolverProcess
from splitinference.settings import Settings
from splitinference_protocol.addresses import any_address_of

log = logging.getLogger("splitinference")

_SOLVER_NICENESS = 5
"""Passes take a moment and must not wait for a look at better plans, which may compute for seconds: three parts to one where both want the
processor."""


def one_pass(reconciler: Reconciler, serves: Callable[[Key], bool], key: Key) -> Pass:
    """A pass, if this operator serves the resource, and what its end means to the loop that runs it."""
    try:
        if not serves(key):
            return Pass(Ended.DONE)
        looked = reconciler.reconcile(*key)
    except UnavailableError as error:
        log.warning("%s/%s: not now: %s", *key, error)
        return Pass(Ended.RETRY)
    except RefusedError as error:
        log.error("%s/%s: refused: %s", *key, error)
        return Pass(Ended.FAILED)
    return Pass(Ended.GONE if looked.gone else Ended.DONE, looked.again_seconds, looked.solved)


def run(settings: Settings) -> bool:
    """Run until told to stop; False if another replica took over."""
    telemetry = Telemetry()
    api = connect()
    leases = KubeLeases(api, settings.lease_seconds, telemetry.called)
    telemetry.serve(settings.metrics_port)
    if not settings.lease:
        lead(settings, telemetry, api, leases, None)
        return True
    valid_seconds = settings.lease_seconds - settings.kube_timeout_seconds
    leadership = Leadership(leases, settings.lease_key, new_identity(), valid_seconds, boot_seconds)
    Gauge("splitinference_leader", "1 while this replica leads, else 0", registry=telemetry.registry).set_function(leadership.leads)
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with healthy(settings.health_port):
        leads = wait_to_lead(leadership, stop)
    signal.signal(signal.SIGTERM, before)
    if leads:
        log.info("holds the Lease %s", settings.lease)
        with holding(leadership):
            lead(settings, telemetry, api, leases, leadership)
    return not leadership.lost


def _root_keys(own: OwnNamespace, settings: Settings, clock: SystemClock) -> RootSecret:
    """The operator's own root key, or one that follows an issuer."""
    names = settings.operator_namespace, settings.root_key_secret
    if settings.issuer_secret:
        return IssuedRoots(own, *names, settings.issuer_secret, clock)
    return RootSecret(own, *names, clock)


def lead(settings: Settings, telemetry: Telemetry, api: client.ApiClient, leases: KubeLeases, leadership: Leadership | None) -> None:
    """Make passes until told to stop."""
    clock = SystemClock()
    may_write = leadership.must_lead if leadership else lambda: None
    cluster = WatchedCluster(
        api, settings.kube_timeout_seconds, settings.watched_namespaces, telemetry.decided, telemetry.called,
        before_write=may_write, certified=telemetry.certified,
    )  # fmt: skip
    threads = ThreadPoolExecutor(settings.pass_threads, thread_name_prefix="pass")
    telemetry.registry.register(ResourceGauges(cluster.split_inferences, telemetry.certificates))
    # Not from the watches: these may be of other namespaces than the operator's own.
    own = OwnNamespace(api, settings.kube_timeout_seconds, before_write=may_write)
    authority = CertificateAuthority(_root_keys(own, settings, clock), settings.trust_domain)
    peers = Peers(authority, clock, settings.trust_domain)
    gateways = GatewayRoutes(peers, cluster.owned, settings.gateway_timeout_seconds)
    measuring, stop = (Measuring(cluster, own, clock, settings) if settings.measure_nodes else None), threading.Event()
    ports = Ports(
        cluster=cluster,
        metrics=PrometheusMetrics(settings),
        gateways=gateways,
        segments=TritonSegments(peers, settings.proof_timeout_seconds),
        models=Profiler(cluster, settings, clock),
        builder=Manifests(settings),
        authority=authority,
        clock=clock,
        planning=threading.Lock(),
        benchmarks=measuring,
    )
    claims = Claims(settings.lease, settings.operator_class, cluster, leases, Watched(boot_seconds))

    def serves(key: Key) -> bool:
        body = cluster.split_inference(*key)
        return body is None or claims.serves(body)

    with SolverProcess(niceness=_SOLVER_NICENESS) as process, threads:
        solver = FairSolver(process)
        crd = CrdNotes(cluster)
        reconciler = Reconciler(ports, settings, telemetry.timed(solver.solve), crd, crd.as_known)

        def pass_of(key: Key) -> Pass:
            with solver.on_behalf_of(key[0]):
                return one_pass(reconciler, serves, key)

        passes = Passes(
            one_pass=pass_of,
            executor=threads,
            slots=settings.pass_threads,
            resync_seconds=settings.resync_seconds,
            retry_seconds=settings.retry_seconds,
            report=telemetry.passed,
        )
        registry = kopf.OperatorRegistry()
        handlers.register(registry, passes, cluster.on_change)
        if measuring is not None:
            threading.Thread(target=measuring.run, args=(stop,), name="measuring", daemon=True).start()
        kopf.run(
            registry=registry,
            clusterwide=not settings.watched_namespaces,
            namespaces=settings.watched_namespaces,
            standalone=True,
            liveness_endpoint=f"http://{any_address_of(settings.pod_ip)}:{settings.health_port}/healthz",
        )
        stop.set()
        gateways.close()
        cluster.stop()


def _short_pauses() -> None:
    """A pass that has its answer from the network gets the interpreter back from one that computes after a millisecond, not five; what was
    imported, most of all objects, is not looked through for garbage again and again, for a fifth of a second each time; and what a pass
    makes for a moment is mostly gone before it is looked at."""
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def main() -> int:
    """Entry point; returns the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"SPLITINFERENCE_{name}: {problem['msg']}\n")
        return 2
    try:
        extended(settings.catalogue_folder)
    except CatalogueError as error:
        sys.stderr.write(f"SPLITINFERENCE_CATALOGUE_FOLDER: {error}\n")
        return 2
    log_format = kopf.LogFormat.JSON if settings.log_format == "json" else kopf.LogFormat.FULL
    kopf.configure(verbose=settings.log_level == "DEBUG", log_format=log_format)
    logging.getLogger().setLevel(settings.log_level)
    for noisy in ("urllib3", "aiohttp", "kopf.objects"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    log.info("splitinference %s, process %s", __version__, os.getpid())
    _short_pauses()
    try:
        if not run(settings):
            return 1
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
