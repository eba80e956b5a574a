"""Where the service runs: instances in one region or two, with balancers before them and the shared stores behind.

The deployment diagram as a scenario writes it; it comes to life in `sim.cluster`. A scenario that names no deployment,
and no fault that needs one, does without all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from msgspec import Struct

from sim.balancer import BalancerModel
from sim.distributions import Distribution, Lognormal
from sim.quantities import DURATION, Spread, Whole
from sim.service_faults import InstanceCrash, RegionPartition, WorkerCrash
from sim.store_faults import SlotsFailover, StoreCrash, StoreFailover
from sim.stores import StoresModel

NEEDS_HOSTS = (InstanceCrash, WorkerCrash, RegionPartition, StoreCrash, StoreFailover, SlotsFailover)


class DeploymentModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Instances of the service and what is between them."""

    instances: Annotated[int, Whole(1, 50), "instances in each region, called home-1, home-2, ..."] = 1
    workers: Annotated[int, Whole(1, 16), "worker processes of an instance"] = 1
    regions: Annotated[tuple[str, ...], "one region or two; the stores' primaries are in the first"] = ("home",)
    distance: Annotated[Distribution, Spread(DURATION), "what the way to another region adds"] = Lognormal(0.03, 0.05)
    balancer: Annotated[BalancerModel | None, "what is before several instances; of one, only where it is named"] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 1 <= len(self.regions) <= 2 or len(set(self.regions)) != len(self.regions):
            yield "regions", "name one region or two different ones, such as [home, away]"

    def names(self, region: str) -> list[str]:
        """Return the names of a region's instances."""
        return [f"{region}-{number}" for number in range(1, self.instances + 1)]

    def problems_of(self, fault: object) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what `fault` names and there is not."""
        names = [name for region in self.regions for name in self.names(region)]
        named = getattr(fault, "instance", None)
        if isinstance(fault, InstanceCrash | WorkerCrash) and named is not None and named not in names:
            yield "instance", f"there is no {named!r}: there are {', '.join(names)}"
        if isinstance(fault, WorkerCrash) and fault.worker > self.workers:
            yield "worker", f"there is no worker {fault.worker}: an instance has {self.workers}"
        regions = fault.between if isinstance(fault, RegionPartition) else ()
        if isinstance(fault, InstanceCrash) and fault.region is not None:
            regions = (fault.region,)
        for region in regions:
            if region not in self.regions:
                path = "between" if isinstance(fault, RegionPartition) else "region"
                yield path, f"there is no region {region!r}: there is {' and '.join(self.regions)}"


def needs_hosts(model: DeploymentModel, stores: StoresModel, faults: Iterable[object]) -> bool:
    """Tell whether a world needs a deployment, or does with one orchestra for whom nothing of this exists."""
    plain = model == DeploymentModel() and stores.pool is None
    return not plain or any(isinstance(fault, NEEDS_HOSTS) for fault in faults)
