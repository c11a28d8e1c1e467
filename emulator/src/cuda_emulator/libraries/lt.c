/* libcublasLt.so.13: no call at all. NVIDIA's path finder wants to see it before it hands out cuBLAS or cuDNN. */
__attribute__((visibility("default"))) const char *emulated_library(void) {
    return "cublasLt";
}
