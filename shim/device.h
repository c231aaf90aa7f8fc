// SPDX-License-Identifier: Apache-2.0
//
// What differs between the devices of PyTorch.  The operators are written once over it; each library links
// them with one implementation, cpu.cpp or cuda.cpp, which registers them for its device, too.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "pcr/pcr.h"

namespace deeppcr {

using torch::stable::Tensor;

// Where a tensor must be: "on the CPU".
extern const char *const kHere;

// Whether memory of the host will do as workspace.
extern const bool kHostMemory;

// Of every tensor that a library computes with; aoti_torch_device_type_cpu() and so on.
int32_t device_type();

// Which of the devices of this type a tensor that is on one is on.
int32_t device_index(const Tensor &tensor);

// Told of memory that a call has just taken and is about to write.
void expect_writes(void *data, size_t bytes);

// Where and how a call runs; the device is the current one as long as this lives.
struct Run {
    std::optional<torch::stable::accelerator::DeviceGuard> guard;
    dpcr_exec exec;
};

// Beside the tensors of the call, of which this is one.
Run run_beside(const Tensor &tensor);

} // namespace deeppcr
