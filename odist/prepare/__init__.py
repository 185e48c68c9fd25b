"""Raw files to memory-mapped stores, one preparation per data set; see PREPARATIONS."""

PREPARATIONS = {
    "commoncrawl": "odist.prepare.commoncrawl:prepare_commoncrawl",
    "criteo": "odist.prepare.criteo:prepare_criteo",
}
