// SPDX-License-Identifier: Apache-2.0
//
// The operators on CUDA devices: on the device of their tensors and its current stream, for which nothing waits.
#include "device.h"
#include "operators.h"
#include "pcr/cuda/cuda.h"

// Of libtorch_cuda.so; PyTorch's header shows it only to who has CUDA's headers, too.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void **stream);

namespace deeppcr {

const char *const kHere = "on the CUDA device of the other tensors";

int32_t device_type() {
    return aoti_torch_device_type_cuda();
}

int32_t device_index(const Tensor &tensor) {
    return tensor.get_device_index();
}

Run run_beside(const Tensor &tensor) {
    const int32_t device = device_index(tensor);
    Run run = {torch::stable::accelerator::DeviceGuard(device), {}};
    run.exec.device = dpcr_cuda_device();
    run.exec.threads = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &run.exec.stream));
    return run;
}

} // namespace deeppcr

STABLE_TORCH_LIBRARY_IMPL(deeppcr, CUDA, m) {
    deeppcr::implement(m);
}
