// SPDX-License-Identifier: Apache-2.0
//
// The operators on CUDA devices: on the device of their tensors and its current stream, for which nothing waits.
#include "device.h"
#include "operators.h"
#include "pcr/cuda/cuda.h"

#include <dlfcn.h>

// Of libtorch_cuda.so; PyTorch's headers show them only to who has CUDA's headers, too.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void **stream);
extern "C" AOTITorchError torch_get_current_cuda_blas_handle(void **handle);

namespace deeppcr {
namespace {

// cuBLAS as PyTorch has it, not a second copy: found in what libtorch_cuda.so was linked with, which is not loaded
// here if it is not loaded yet.
struct Cublas {
    dpcr_cuda_sgemm sgemm = nullptr;
    dpcr_cuda_dgemm dgemm = nullptr;
    int (*get_math_mode)(void *handle, int *mode) = nullptr;
    int (*set_math_mode)(void *handle, int mode) = nullptr;

    Cublas() {
        void *const torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        if (!torch) return;
        find(torch, "cublasSgemmStridedBatched", sgemm);
        find(torch, "cublasDgemmStridedBatched", dgemm);
        find(torch, "cublasGetMathMode", get_math_mode);
        find(torch, "cublasSetMathMode", set_math_mode);
    }

    bool is_there() const {
        return sgemm && dgemm && get_math_mode && set_math_mode;
    }

private:
    template <class F> static void find(void *library, const char *name, F &function) {
        function = reinterpret_cast<F>(dlsym(library, name));
    }
};

const Cublas &cublas() {
    static const Cublas found;
    return found;
}

constexpr int kNoHandle = -1;
constexpr int kDefaultMath = 0; // CUBLAS_DEFAULT_MATH: float is float, whatever PyTorch has been allowed

// PyTorch's handle for this thread, device and stream, asked for only where there is a product: the first time makes it.
template <class F, class... A> int with_handle(F gemm, A... arguments) {
    void *handle = nullptr;
    int mode = kDefaultMath;
    if (torch_get_current_cuda_blas_handle(&handle) != TORCH_SUCCESS) return kNoHandle;
    int status = cublas().get_math_mode(handle, &mode);
    if (status == 0 && mode != kDefaultMath) status = cublas().set_math_mode(handle, kDefaultMath);
    if (status == 0) status = gemm(handle, arguments...);
    if (mode != kDefaultMath) cublas().set_math_mode(handle, mode);
    return status;
}

int sgemm(void *, int transpose_A, int transpose_B, int m, int n, int k, const float *alpha, const float *A,
          int row_A, long long next_A, const float *B, int row_B, long long next_B, const float *beta,
          float *C, int row_C, long long next_C, int count) {
    return with_handle(cublas().sgemm, transpose_A, transpose_B, m, n, k, alpha, A, row_A, next_A, B, row_B,
                       next_B, beta, C, row_C, next_C, count);
}

int dgemm(void *, int transpose_A, int transpose_B, int m, int n, int k, const double *alpha, const double *A,
          int row_A, long long next_A, const double *B, int row_B, long long next_B, const double *beta,
          double *C, int row_C, long long next_C, int count) {
    return with_handle(cublas().dgemm, transpose_A, transpose_B, m, n, k, alpha, A, row_A, next_A, B, row_B,
                       next_B, beta, C, row_C, next_C, count);
}

const dpcr_cuda_blas kBlas = {nullptr, sgemm, dgemm, false};

} // namespace

const char *const kHere = "on the CUDA device of the other tensors";
const bool kHostMemory = false;

int32_t device_type() {
    return aoti_torch_device_type_cuda();
}

int32_t device_index(const Tensor &tensor) {
    return tensor.get_device_index();
}

void expect_writes(void *, size_t) {
}

Run run_beside(const Tensor &tensor) {
    const int32_t device = device_index(tensor);
    Run run = {torch::stable::accelerator::DeviceGuard(device), {}};
    run.exec.device = dpcr_cuda_device();
    run.exec.threads = 1;
    run.exec.blas = cublas().is_there() ? &kBlas : nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &run.exec.stream));
    return run;
}

} // namespace deeppcr

STABLE_TORCH_LIBRARY_IMPL(deeppcr, CUDA, m) {
    deeppcr::implement(m);
}
