"""The pretend cluster's other ports: nodes, gateways, segments, models and the clock, all answering from one world."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import LIFETIME, SKEW, Credentials, Owner, Role, renewal_due, spiffe_id
from splitinference.controller.ports import Listing, Pending, Proof, Unreadable
from splitinference.core.values.profile import Profile
from splitinference_protocol.report import GatewayReport, RouteState
from tests.controller.objects import is_ready

if TYPE_CHECKING:
    from tests.controller.pretend import Pretend


@dataclass
class ClusterOf:
    """The cluster's port: all but the nodes are the world's own methods."""

    world: "Pretend"

    def nodes(self) -> Listing:
        return self.world.shown_as("Node", self.world.nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


@dataclass
class Gateways:
    world: "Pretend"

    def routes(self, owner: Owner) -> GatewayReport | None:
        namespace, instance = owner.namespace, owner.name
        gateways = (p for p in self.world.owned("Pod", namespace, instance) if p["metadata"]["name"].startswith(f"{instance}-gateway-"))
        pod = next(gateways, None)
        if pod is None or not is_ready(pod):
            return None
        found = self.world.objects.get(("ConfigMap", namespace, f"{instance}-route"))
        document = json.loads(found["data"]["route.json"]) if found and "route.json" in found["data"] else {}
        revision = document["revision"] if document.get("pipelines") else None
        routes = {name: RouteState(in_flight=count, state="draining") for name, count in self.world.in_flight.items()}
        return GatewayReport(
            revision=revision,
            routes=routes,
            observed=self.world.traffic,
            failing=self.world.failing,
            verification=self.world.verified,
            queued=0,
            adapters=self.world.adapters_in_flight,
            held=self.world.held if document.get("asleep") else 0,
        )


@dataclass
class Segments:
    world: "Pretend"

    def prove(self, owner: Owner, segment: str, model: str, pod_ip: str) -> Proof:
        if segment in self.world.dead:
            return Proof(ok=False, dead=True, why=f"{segment} answered 500: the stub is gone")
        if segment in self.world.gone:
            return Proof(ok=False, unreachable=True, why=f"{segment} cannot be reached")
        self.world.proved.append(segment)
        return Proof(ok=True, milliseconds=1.0)

    def adapters(
        self, owner: Owner, segment: str, model: str, pod_ip: str, keep: Collection[str] | None = None
    ) -> Mapping[str, int] | None:
        if segment in self.world.dead | self.world.gone:
            return None
        held = self.world.adapters.setdefault(segment, {})
        if keep is not None:
            for digest in set(held) - set(keep):
                del held[digest]
        return dict(held)


@dataclass
class Models:
    world: "Pretend"

    def profile(self, resource: Resource) -> Profile | Pending | Unreadable:
        return self.world.profiles[resource.name]


@dataclass
class Authority:
    """Certificates with a number in place of what a key would sign."""

    world: "Pretend"
    made: dict[tuple[Owner, Role], Credentials] = field(default_factory=dict)

    def credentials(self, owner: Owner, role: Role, now: datetime) -> Credentials:
        found = self.made.get((owner, role))
        if found is None or renewal_due(found, now):
            self.world.issued += 1
            text = f"{spiffe_id('cluster.local', owner, role)} {self.world.issued}".encode()
            found = Credentials(certificate=text, key=text, authorities=b"ca", not_before=now - SKEW, not_after=now + LIFETIME)
            self.made[owner, role] = found
        return found

    def prefix_key(self, owner: Owner) -> bytes:
        return owner.uid.encode().ljust(32)[:32]

    def forget(self, namespace: str, name: str) -> None:
        self.made = {key: found for key, found in self.made.items() if (key[0].namespace, key[0].name) != (namespace, name)}


@dataclass
class Clock:
    world: "Pretend"

    def now(self) -> datetime:
        return self.world.now
