// SPDX-License-Identifier: Apache-2.0
//
// Between PyTorch's tensors and the C library: shapes checked, strides read, memory lent, a C status
// turned into an exception.  Only shim/ includes LibTorch, and of it only the stable ABI.
//
// Exceptions: std::invalid_argument becomes ValueError, std::runtime_error RuntimeError.  PyTorch has none that becomes
// NotImplementedError: it is a RuntimeError that begins with kUnsupported (torch_deeppcr/_native.py).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "device.h"
#include "ops/chain.h"

// Since torch 2.13; older ones leave it undefined and only say that a call failed.
extern "C" __attribute__((weak)) const char *torch_exception_get_what_without_backtrace();

namespace deeppcr {

using torch::headeronly::ScalarType;
// A view, for the expression that makes it.
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string text(Shape shape) {
    std::string out = "(";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + ")";
}

// message: text, or a function that makes it; a call has no time for text that nobody reads.
template <class Message> void require(bool condition, const Message &message) {
    if (condition) return;
    if constexpr (std::is_invocable_v<Message>)
        throw std::invalid_argument(message());
    else
        throw std::invalid_argument(message);
}

inline constexpr const char *kUnsupported = "deeppcr: not implemented: ";

inline void check(dpcr_status status) {
    if (status == DPCR_OK) return;
    const std::string message = std::string(dpcr_detail());
    if (status == DPCR_BAD_ARGUMENT) throw std::invalid_argument(message);
    throw std::runtime_error(status == DPCR_UNSUPPORTED ? kUnsupported + message : message);
}

// One of the dtypes that the kernels take; every other tensor of the call must have the same.
inline dpcr_dtype dtype_of(const char *name, const Tensor &tensor) {
    const ScalarType type = tensor.scalar_type();
    require(type == ScalarType::Float || type == ScalarType::Double,
            [&] { return std::string(name) + " must be float32 or float64"; });
    return type == ScalarType::Float ? DPCR_F32 : DPCR_F64;
}

inline bool is_here(const Tensor &tensor) {
    int32_t type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type == device_type();
}

inline void check_like(const char *name, const Tensor &tensor, const Tensor &other) {
    require(tensor.scalar_type() == other.scalar_type(),
            [&] { return std::string(name) + " must have the dtype of the other tensors"; });
    require(is_here(tensor) && is_here(other) && device_index(tensor) == device_index(other),
            [&] { return std::string(name) + " must be " + kHere; });
}

inline void check_shape(const char *name, const Tensor &tensor, Shape expected) {
    const auto sizes = tensor.sizes();
    require(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), [&] {
        return std::string(name) + " must have shape " + text(expected) + ", got " + text(sizes);
    });
}

// Not through PyTorch's dispatcher where there is nothing to do: it costs as much as a small chain.
inline Tensor packed(const Tensor &tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// ---- memory: PyTorch's, with PyTorch's own message where it runs out ------------------------------

inline constexpr size_t kManyBytes = size_t(4) << 20;

// On the device of another tensor.
inline Tensor allocate(Shape shape, ScalarType type, const Tensor &beside) {
    constexpr size_t kMostDimensions = 4;
    int64_t strides[kMostDimensions];
    require(shape.size() <= kMostDimensions, "no result has more than 4 dimensions");
    for (size_t i = shape.size(); i-- > 0;)
        strides[i] = i + 1 == shape.size() ? 1 : strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);
    const int32_t dtype = type == ScalarType::Float    ? aoti_torch_dtype_float32()
                          : type == ScalarType::Double ? aoti_torch_dtype_float64()
                          : type == ScalarType::Int    ? aoti_torch_dtype_int32()
                          : type == ScalarType::Long   ? aoti_torch_dtype_int64()
                                                       : aoti_torch_dtype_uint8();
    AtenTensorHandle handle = nullptr;
    if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides, dtype,
                                 device_type(), device_index(beside), &handle)
        != TORCH_SUCCESS)
        throw std::runtime_error(torch_exception_get_what_without_backtrace
                                     ? std::string(torch_exception_get_what_without_backtrace())
                                     : "PyTorch could not allocate a tensor of shape " + text(shape));
    const Tensor tensor(handle);
    const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
    if (bytes >= kManyBytes) expect_writes(tensor.mutable_data_ptr(), bytes);
    return tensor;
}

inline Tensor allocate_like(const Tensor &tensor) {
    return allocate(tensor.sizes(), tensor.scalar_type(), tensor);
}

// What a gradient that nobody asked for comes back as.
inline Tensor nothing(const Tensor &like) {
    return allocate({0}, like.scalar_type(), like);
}

// On the CPU small ones lie on the stack, and those up to kMostKept in memory that the calling thread keeps: what an
// allocator has given back to the system costs as much to get again as a short chain takes.
class Workspace {
public:
    Workspace(size_t bytes, const Tensor &beside) : bytes_(bytes) {
        if (bytes == 0) return;
        data_ = kHostMemory && bytes <= sizeof small_ ? small_
                : kHostMemory && bytes <= kMostKept   ? kept(bytes)
                                                      : nullptr;
        if (data_) return;
        memory_ = allocate({static_cast<int64_t>(bytes)}, ScalarType::Byte, beside);
        data_ = memory_->mutable_data_ptr();
    }
    Workspace(const Workspace &) = delete; // it may hold its own address
    Workspace &operator=(const Workspace &) = delete;
    dpcr_buffer buffer() {
        return {data_, bytes_};
    }

private:
    static constexpr size_t kMostKept = size_t(4) << 20;

    // At least so many bytes, or nullptr; one workspace of a thread is in use at a time.
    static void *kept(size_t bytes) {
        thread_local struct {
            std::unique_ptr<void, decltype(&std::free)> data{nullptr, &std::free};
            size_t bytes = 0;
        } own;
        if (bytes > own.bytes) {
            own.data.reset();
            own.bytes = (bytes + DPCR_ALIGNMENT - 1) / DPCR_ALIGNMENT * DPCR_ALIGNMENT;
            own.data.reset(std::aligned_alloc(DPCR_ALIGNMENT, own.bytes));
            if (!own.data) own.bytes = 0;
        }
        return own.data.get();
    }

    alignas(DPCR_ALIGNMENT) unsigned char small_[8192];
    void *data_ = nullptr;
    std::optional<Tensor> memory_;
    size_t bytes_;
};

} // namespace deeppcr
