"""Model editors behind one interface, and the traces of what each edit does to its probes."""
