"""Raw files to memory-mapped row stores, one preparation per data set; see PREPARATIONS."""

PREPARATIONS = {
    "criteo": "odist.prepare.criteo:prepare_criteo",
}
