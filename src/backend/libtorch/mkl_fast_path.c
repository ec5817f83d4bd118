// MKL asks this whether the processor is Intel's, and on others takes paths without their newer instructions. Where this
// library is loaded before libtorch, which has MKL in it, this answer goes before MKL's own.
__attribute__((visibility("default"))) int mkl_serv_intel_cpu_true(void) { return 1; }
