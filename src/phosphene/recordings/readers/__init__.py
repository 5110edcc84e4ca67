"""Readers: from the layouts recordings come in to one study file; an incomplete tree is refused, naming what lacks."""
