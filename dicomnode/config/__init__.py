"""config.toml → frozen, validated models.

Read once. Every setting has its unit in its name or description, a default where one is safe, and
a one-line reason; the shipped config.toml repeats them and a test keeps the two in step. A wrong
file is reported whole: every problem, each with its key and what to do.

::

    section      what every table is made of
    listening    [node] [[peers]] [tls] [receive] [query]
    computing    [assemble] [density] [dose] [cluster] [montecarlo] [network]; [[camera]]: `pipeline.activity`
    sending      [encode] [deliver] [commitment] [fetch] [notify]
    keeping      [retention] [audit]
    whole        all of them, what they must agree on, and reading them
    problems     what is said of a wrong file; wording: of a wrong value
"""

from dicomnode.config.computing import Assemble, Cluster, Density, Dose, Engine, MonteCarlo, Network
from dicomnode.config.keeping import Audit, Retention
from dicomnode.config.listening import PASSWORD_HASH, AnyRight, Node, Peer, Query, Receive, Right, Role, Tls
from dicomnode.config.section import Section
from dicomnode.config.sending import Commitment, Deliver, Encode, Fetch, Notify, RejectionReason
from dicomnode.config.whole import LARGEST_SHARE_OF_TIMEOUT, Config, load, parse, with_engines

__all__ = [
    "LARGEST_SHARE_OF_TIMEOUT",
    "PASSWORD_HASH",
    "AnyRight",
    "Assemble",
    "Audit",
    "Cluster",
    "Commitment",
    "Config",
    "Deliver",
    "Density",
    "Dose",
    "Encode",
    "Engine",
    "Fetch",
    "MonteCarlo",
    "Network",
    "Node",
    "Notify",
    "Peer",
    "Query",
    "Receive",
    "RejectionReason",
    "Retention",
    "Right",
    "Role",
    "Section",
    "Tls",
    "load",
    "parse",
    "with_engines",
]
