"""How the replicas of one group agree on one set of weights, by name."""

STRATEGIES = {
    "allreduce": "odist.strategies.allreduce:AllReduce",
    "delayed": "odist.strategies.delayed:Delayed",
    "local_sgd": "odist.strategies.local_sgd:LocalSGD",
}
