"""`python -m benchmarks` measures the speeds."""

from benchmarks.bench import main

raise SystemExit(main())
