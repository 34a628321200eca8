"""A registered version as a Bento: weights, code and requirements in one folder, which BentoML serves anywhere.

    bento = build(Registry.open(), version)     # what `prosemill package` does
    Service = make_service(Packed(folder))      # in the Bento

`build` makes it, `packed` reads it where it is served, and `entry` is what BentoML finds there. A Bento knows no registry, and needs
neither MLflow nor a checkout of this repository.
"""
