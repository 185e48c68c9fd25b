"""Where rows come from and in which order: memory-mapped stores, orders, prefetch."""
