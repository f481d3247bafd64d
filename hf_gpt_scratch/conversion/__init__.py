"""Conversion: released and foreign checkpoints to this project's safetensors, and back. Imports no torch by itself."""

import os


# Before numpy is imported: the idle threads of its OpenBLAS would spin for 2**26 cycles before they sleep, which costs
# this stage a fifth of its CPU time. Source: openblas_env.c, blas_server.c.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
