"""The embedded model and the comparison that `sparse-vdit demo` runs."""
