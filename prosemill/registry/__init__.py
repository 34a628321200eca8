"""From a trained model to the one that is served: packages, versions, lineage, the gate, promotion.

    version = register()                           # the workspace's model, as the challenger
    verdict = promote(Registry.open(), gate)       # through the gate, to champion
    roll_back(Registry.open())

A version is a package (prosemill/packaged) with tags that lead back to its run, commit and data; the aliases `challenger`, `champion` and
`previous_champion` say what is served. Nothing heavy is imported before it is needed: a promotion loads no torch.
"""
