"""Raw files to memory-mapped stores, one preparation per data set; see PREPARATIONS."""

PREPARATIONS = {
    "commoncrawl": "odist.prepare.text.prepare:prepare_commoncrawl",
    "criteo": "odist.prepare.criteo.prepare:prepare_criteo",
}
