import os

# One thread by default: the matrices here are small, so threads would only wait for each other, and for those of the
# other worker. BLAS libraries read this when they are loaded, and processes that tests start inherit it.
THREADS = int(os.environ.get("SPLINTERP_TEST_THREADS", "1"))
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
