"""The ``bitbranch`` command and its report."""
