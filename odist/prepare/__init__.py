"""Raw files to memory-mapped stores: one preparation per data set, all made by job.py."""
