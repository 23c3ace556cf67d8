"""`python -m dicomnode.conformance`: writes docs/conformance.md anew from the code."""

from dicomnode.conformance.page import main

if __name__ == "__main__":
    main()
