"""`python -m cloud_supervisor.cli`."""

import sys

from cloud_supervisor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
