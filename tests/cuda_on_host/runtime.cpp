/* SPDX-License-Identifier: Apache-2.0
 * The host side of CUDA that launchers use, on the simulator's one device. */
#include "simulator.h"

#include <string.h>

/* A stream is the seed of its order. */
struct CUstream_st {
    uint64_t seed;
};

namespace cuda_on_host {

static int refuse_after = -1;
static int64_t launches;

order order_of(cudaStream_t stream) {
    return {stream->seed};
}

/* splitmix64 */
uint64_t draw(order *o, uint64_t below) {
    uint64_t z = o->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % below;
}

bool refused() {
    if (refuse_after >= 0 && refuse_after-- == 0) return true;
    launches++;
    return false;
}

static cudaError_t finish(bool touched, cudaStream_t stream) {
    if (!stream) fail("the default stream is used");
    if (!touched) fail("cudaMemsetAsync or cudaMemcpyAsync outside every device array");
    phase++;
    return has_failed() ? cudaErrorInvalidValue : cudaSuccess;
}

} // namespace cuda_on_host

using namespace cuda_on_host;

void *cuda_on_host_stream(uint64_t seed) {
    static CUstream_st streams[16];
    for (int i = 0; i < 16; i++) {
        if (streams[i].seed == seed) return &streams[i];
        if (i > 0 && streams[i].seed == 0) { /* the first one is seed 0 */
            streams[i].seed = seed;
            return &streams[i];
        }
    }
    return NULL;
}

void cuda_on_host_refuse(int after) {
    refuse_after = after;
}

int64_t cuda_on_host_launches(void) {
    return launches;
}

cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
    const bool touched = bytes == 0 || touch(data, bytes, true);
    if (touched) memset(data, value, bytes);
    return finish(touched, stream);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    const bool touched = bytes == 0 || (touch((void *)from, bytes, false) && touch(to, bytes, true));
    if (touched) memmove(to, from, bytes);
    return finish(touched, stream);
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = MAX_SHARED; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}
