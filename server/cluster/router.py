"""Router for Ray Serve: sends a request where its prompt's beginning was read, if it is not far busier."""

from __future__ import annotations

import random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from trimtab.server.cluster.prefixes import PrefixMemory
from trimtab.server.engine.request import Request

MAX_LEAD = 8


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # which has no types
    """max_lead: requests that a replica may have more than the idlest one and still get those whose prefix it
    has."""

    def initialize_state(self, max_lead: int = MAX_LEAD) -> None:
        self._max_lead = max_lead
        self._memory: PrefixMemory[ReplicaID] = PrefixMemory()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, of which Ray asks the first one's idlest, then the next one's."""
        replicas = random.sample(candidate_replicas, len(candidate_replicas))  # where they are equally idle
        if pending_request is None:
            return [replicas]
        pending_request.routing_context.should_backoff = True  # where all of them are full
        request = request_of(pending_request)
        places = {r.replica_id for r in replicas}
        found = self._memory.find(request.prompt_token_ids, places, request.salt) if request else None
        known = {r.replica_id: self.replica_queue_len_cache.get(r.replica_id) for r in replicas}
        loads = {replica_id: load for replica_id, load in known.items() if load is not None}
        if found is None or loads.get(found, 0) - min(loads.values(), default=0) > self._max_lead:
            return [replicas]
        return [[r for r in replicas if r.replica_id == found], replicas]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Remembers it."""
        if (request := request_of(pending_request)) is not None:
            self._memory.remember(request.prompt_token_ids, replica_id, request.salt)


def request_of(pending: PendingRequest) -> Request | None:
    """None of other calls."""
    return next((arg for arg in pending.args if isinstance(arg, Request)), None)
