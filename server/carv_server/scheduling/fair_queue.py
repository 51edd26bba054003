"""The waiting requests, and whose cells come next. Pure: no clock, no event loop.

Between tenants: start-time fair queueing (Goyal, Vin and Cheng 1996), with an evaluation's cost
one over the tenant's weight. The tenant that has had least fills the microbatch first, others
fill what it leaves; one that comes back after a pause starts level with who is served now.

Within a tenant: by priority, strictly; then in rounds of a few evaluations for each request, so
that a long request is passed by short ones; within a round by earliest deadline, then by arrival. A
request joins the round that a request with an equal share since the start would be in.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Queued", "Waiting"]

# Evaluations of a request in one round: the budget over this.
_ROUNDS_IN_A_MICROBATCH = 8
# Requests whose next cell does not fit into what is left of a microbatch.
_MOST_PASSED_OVER = 8
# Tag of what goes ahead of all rounds.
_AHEAD = -float(1 << 50)
# Entries of requests that have left are swept out once they outnumber the others by this.
_SLACK = 64


class Queued(Protocol):
    """A request in the queue: cells of draws, each evaluated whole, in order."""

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...

    @property
    def due(self) -> float:
        """Its deadline, or what it is ordered by without one."""
        ...

    @property
    def signature(self) -> Hashable:
        """Only requests that agree in it share a microbatch."""
        ...

    @property
    def waiting_cells(self) -> int: ...

    @property
    def waiting_evaluations(self) -> int: ...

    def cell_cost(self, index: int) -> int:
        """Evaluations of one of the waiting cells, at least 1."""
        ...


J = TypeVar("J", bound=Queued)


@dataclass(frozen=True)
class Waiting:
    """What waits, of one tenant or of all."""

    requests: int
    evaluations: int


class _Tenant:
    """``served``: evaluations over weight, the virtual time at which its next ones start."""

    __slots__ = ("evaluations", "requests", "served", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.served = 0.0
        self.requests = 0
        self.evaluations = 0


class _Entry(Generic[J]):
    """One request in its lane. ``tag``: evaluations that an equal share would have given it by
    now; ``job`` is None once it has left."""

    __slots__ = ("claimed", "evaluations", "job", "lane", "sequence", "tag")

    def __init__(self, job: J, lane: _Lane[J], sequence: int, tag: float) -> None:
        self.job: J | None = job
        self.lane = lane
        self.sequence = sequence
        self.tag = tag
        self.claimed = 0
        self.evaluations = job.waiting_evaluations


_Key = tuple[int, float, float, int, _Entry[J]]


class _Lane(Generic[J]):
    """Requests of one tenant and one signature.

    ``share``: evaluations that each of its requests would have had so far, served equally.
    ``turn``: decides between lanes whose tenants were served alike. A tenant that has just come
    goes first; then it is the lane that was served longest ago. Unique.
    """

    __slots__ = ("heap", "live", "name", "share", "tenant", "turn")

    def __init__(self, name: tuple[str, Hashable], tenant: _Tenant, turn: tuple[bool, int]) -> None:
        self.name = name
        self.tenant = tenant
        self.turn = turn
        self.heap: list[_Key[J]] = []
        self.live = 0
        self.share = 0.0


_LaneKey = tuple[float, tuple[bool, int], _Lane[J]]


class FairQueue(Generic[J]):
    """Every operation costs O(log n) in requests and tenants, and O(signatures).

    Args:
        budget: evaluations of a full microbatch.
        weights: by tenant; 1 for those not named. May change; see ``reweigh``.
    """

    def __init__(self, budget: int, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._quantum = max(1, budget // _ROUNDS_IN_A_MICROBATCH)
        self._sequence = 0
        self._clear()

    def _clear(self) -> None:
        self._entries: dict[J, _Entry[J]] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._lanes: dict[tuple[str, Hashable], _Lane[J]] = {}
        # By signature: lanes by what their tenant was served when it was put here, or more.
        self._groups: dict[Hashable, list[_LaneKey[J]]] = {}
        self._virtual = 0.0
        self._waiting_weight = 0.0
        self.evaluations = 0

    @property
    def requests(self) -> int:
        return len(self._entries)

    def share(self, tenant: str) -> float:
        """Its weight among the tenants that have something waiting, itself included; at most 1."""
        weight, found = self._weight(tenant), self._tenants.get(tenant)
        if found and found.requests:
            return 1.0 if len(self._entries) == found.requests else weight / self._waiting_weight
        return weight / (weight + self._waiting_weight)

    def waiting(self, tenant: str) -> Waiting:
        found = self._tenants.get(tenant)
        return Waiting(found.requests, found.evaluations) if found else Waiting(0, 0)

    def by_tenant(self) -> dict[str, Waiting]:
        """Of every tenant that has something waiting."""
        return {
            name: Waiting(tenant.requests, tenant.evaluations)
            for name, tenant in self._tenants.items()
            if tenant.requests
        }

    def reweigh(self) -> None:
        """Take weights anew: of what is served from now on, not of what was."""
        for name, tenant in self._tenants.items():
            tenant.weight = self._weight(name)
        self._waiting_weight = sum(t.weight for t in self._tenants.values() if t.requests)

    def jobs(self) -> list[J]:
        """All that waits, in no order."""
        return list(self._entries)

    def push(self, job: J, *, ahead: bool = False) -> None:
        """Add a request that is not here.

        Args:
            ahead: of its tenant's others of equal priority.
        """
        self._sequence += 1
        lane = self._lane(job.tenant, job.signature)
        entry = _Entry(job, lane, self._sequence, _AHEAD if ahead else lane.share)
        self._entries[job] = entry
        self._count(job.tenant, 1, entry.evaluations)
        lane.live += 1
        heappush(lane.heap, self._key(entry, job))

    def discard(self, job: J) -> None:
        """Take a request out, if it is here."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        self._count(job.tenant, -1, -entry.evaluations)
        entry.job = None
        lane = entry.lane
        lane.live -= 1
        if not self._entries:
            self._clear()
        elif len(lane.heap) > 2 * lane.live + _SLACK:
            lane.heap = [key for key in lane.heap if key[-1].job is not None]
            heapify(lane.heap)

    def take(self, most: int) -> list[tuple[J, int]]:
        """Cells for a microbatch of at most so many evaluations: each request's number of its next
        waiting cells. They are no longer counted as waiting; the caller cuts them off.

        A cell that alone is above ``most`` makes a microbatch by itself, or it would never run.
        """
        group = self._first_group()
        if group is None:
            return []
        claimed: list[_Entry[J]] = []
        visited: list[_Lane[J]] = []
        left = most
        while left > 0 and self._freshen(group):
            lane = heappop(group)[-1]
            if not visited:
                self._virtual = max(self._virtual, lane.tenant.served)
            visited.append(lane)
            left = self._fill(lane, left, most, claimed)
        for lane in visited:
            self._sequence += 1
            lane.turn = (True, self._sequence)
            if lane.live:
                heappush(group, (lane.tenant.served, lane.turn, lane))
            else:
                del self._lanes[lane.name]
        cells = [(entry.job, entry.claimed) for entry in claimed if entry.job is not None]
        self._settle(claimed)
        return cells

    def _fill(self, lane: _Lane[J], left: int, most: int, claimed: list[_Entry[J]]) -> int:
        """Claim cells of one lane's requests; evaluations that are left then."""
        heap, before = lane.heap, left
        passed_over: list[_Key[J]] = []
        while left > 0 and heap and len(passed_over) < _MOST_PASSED_OVER:
            key = heappop(heap)
            entry = key[-1]
            job = entry.job
            if job is None:
                continue
            cells = job.waiting_cells - entry.claimed
            quantum = min(self._quantum, left)
            count = cost = 0
            while count < cells:
                next_cost = job.cell_cost(entry.claimed + count)
                alone = left == most and count == 0
                if cost + next_cost > (left if count == 0 else quantum) and not alone:
                    break
                cost += next_cost
                count += 1
            if count == 0:
                passed_over.append(key)
                continue
            if entry.claimed == 0:
                claimed.append(entry)
            entry.claimed += count
            entry.evaluations -= cost
            entry.tag += cost
            left -= cost
            self._count(job.tenant, 0, -cost)
            lane.share += cost / lane.live
            if count < cells:
                heappush(heap, self._key(entry, job))
            else:
                lane.live -= 1
        for key in passed_over:
            heappush(heap, key)
        lane.tenant.served += (before - left) / lane.tenant.weight
        return left

    def _settle(self, claimed: list[_Entry[J]]) -> None:
        for entry in claimed:
            job = entry.job
            if job is not None and entry.claimed == job.waiting_cells:
                del self._entries[job]
                self._count(job.tenant, -1, 0)
            entry.claimed = 0
        if not self._entries:
            self._clear()

    def _key(self, entry: _Entry[J], job: J) -> _Key[J]:
        return (-job.priority, entry.tag // self._quantum, job.due, entry.sequence, entry)

    def _count(self, name: str, requests: int, evaluations: int) -> None:
        tenant = self._tenants[name]
        if tenant.requests == 0:
            self._waiting_weight += tenant.weight
        tenant.requests += requests
        if tenant.requests == 0:
            self._waiting_weight -= tenant.weight
        tenant.evaluations += evaluations
        self.evaluations += evaluations

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def _lane(self, tenant_name: str, signature: Hashable) -> _Lane[J]:
        tenant = self._tenants.get(tenant_name)
        if tenant is None:
            if len(self._tenants) > 2 * len(self._entries) + _SLACK:
                self._sweep()
            tenant = self._tenants[tenant_name] = _Tenant(self._weight(tenant_name))
        if tenant.requests == 0:
            tenant.served = max(tenant.served, self._virtual)
        name = (tenant_name, signature)
        lane = self._lanes.get(name)
        if lane is None:
            self._sequence += 1
            turn = (tenant.requests > 0, self._sequence)
            lane = self._lanes[name] = _Lane(name, tenant, turn)
            group = self._groups.setdefault(signature, [])
            heappush(group, (tenant.served, lane.turn, lane))
        return lane

    def _first_group(self) -> list[_LaneKey[J]] | None:
        """Lanes of the signature whose first lane's tenant has been served least."""
        for signature in [s for s, group in self._groups.items() if not self._freshen(group)]:
            del self._groups[signature]
        return min(self._groups.values(), key=lambda group: group[0][:2], default=None)

    def _freshen(self, group: list[_LaneKey[J]]) -> bool:
        """Make the first key of a group true; False where the group is empty.

        A tenant's time only grows, so an old key is never too high.
        """
        while group:
            served, _, lane = group[0]
            if lane.live == 0:
                heappop(group)
                del self._lanes[lane.name]
            elif lane.tenant.served > served:
                heapreplace(group, (lane.tenant.served, lane.turn, lane))
            else:
                return True
        return False

    def _sweep(self) -> None:
        """Forget lanes that are empty, and tenants whose past no longer counts."""
        for signature, group in list(self._groups.items()):
            kept = [key for key in group if key[-1].live]
            heapify(kept)
            self._groups[signature] = kept
        self._lanes = {name: lane for name, lane in self._lanes.items() if lane.live}
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.requests or tenant.served > self._virtual
        }
