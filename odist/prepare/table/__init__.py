"""Any table of clicks: the same stores as Criteo's, from columns that a schema names."""
