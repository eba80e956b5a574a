"""Every fault that a scenario may name: a struct with `at`, `lasts`, `what` (the fault in a few words) and `problems`.

What a fault does stands beside its data: `sim.provider_faults`, `sim.store_faults`, `sim.service_faults`,
`sim.client_faults`, `sim.network_faults`.
"""

from __future__ import annotations

from sim.client_faults import ClientFault, ClientsDisconnected
from sim.injection import Faults, Injection
from sim.network_faults import LinkFault
from sim.provider_faults import ProviderFailing, ProviderFault, ProviderSlow
from sim.service_faults import ServiceFault
from sim.store_faults import StoreDown, StoreFault, StoreName

__all__ = [
    "ClientsDisconnected",
    "Fault",
    "Faults",
    "Injection",
    "ProviderFailing",
    "ProviderSlow",
    "StoreDown",
    "StoreName",
    "kind_of",
]

Fault = ProviderFault | StoreFault | ServiceFault | ClientFault | LinkFault


def kind_of(fault: Fault) -> str:
    """Return the name of a fault's kind, as a scenario writes it."""
    return str(fault.__struct_config__.tag)
