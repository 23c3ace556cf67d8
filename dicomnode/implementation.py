"""Who wrote a file or speaks on an association: this software (PS3.7 D.3.3.2)."""

from dicomnode import __version__

# Fixed for ever: a UUID under 2.25.
IMPLEMENTATION_CLASS_UID = "2.25.335562912661724348994231123876539037315"
IMPLEMENTATION_VERSION_NAME = f"DICOMNODE_{__version__}"[:16]
