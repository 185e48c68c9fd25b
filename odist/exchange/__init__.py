"""How weights travel between groups, by name."""

EXCHANGES = {
    "memory": "odist.exchange.memory:MemoryExchange",
    "store": "odist.exchange.store:StoreExchange",
}
