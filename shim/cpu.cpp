// SPDX-License-Identifier: Apache-2.0
//
// The operators on the CPU, on PyTorch's threads.
#include "device.h"
#include "operators.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace deeppcr {
namespace {

struct Body {
    dpcr_body run;
    void *argument;
};

void torch_for(void *, int64_t count, dpcr_body run, void *argument) {
    Body body = {run, argument};
    const auto call = [](int64_t begin, int64_t end, void *context) {
        const Body *body = static_cast<const Body *>(context);
        body->run(body->argument, begin, end);
    };
    // It fails only where a body throws, and bodies are C.
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, call, &body));
}

} // namespace

const char *const kHere = "on the CPU";
const bool kHostMemory = true;

int32_t device_type() {
    return aoti_torch_device_type_cpu();
}

int32_t device_index(const Tensor &) {
    return 0;
}

// Stacked gradients are fresh memory in every training step, and most of a step may be page faults: measured, 150 of
// 200 ms for 256 MiB in pages of 4 KiB.
void expect_writes([[maybe_unused]] void *data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr size_t kHuge = size_t(2) << 20;
    const size_t begin = reinterpret_cast<size_t>(data), first = (begin + kHuge - 1) / kHuge * kHuge;
    const size_t last = (begin + bytes) / kHuge * kHuge;
    // Advice: where the system does not take it, nothing changes.
    if (last > first) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#endif
}

Run run_beside(const Tensor &) {
    dpcr_exec exec = dpcr_serial();
    exec.threads = torch::stable::get_num_threads();
    exec.parallel_for = torch_for;
    exec.grain = 400000; // about 20 us of one core; a start costs 2 us, and far more on a busy machine
    return {std::nullopt, exec};
}

} // namespace deeppcr

STABLE_TORCH_LIBRARY_IMPL(deeppcr, CPU, m) {
    deeppcr::implement(m);
}
