# The objects deeppcr_cuda_kernels: the CUDA device, for the plain-C library and for the one that torch_deeppcr
# loads.  DEEPPCR_HAVE_CUDA says whether they are there.  The CUDA runtime is linked statically, so a library of
# them loads without a driver and ties nobody to a toolkit.
#
# AUTO is for whoever can use it: the plain-C library wherever nvcc is, the Python package where its torch has CUDA.
set(DEEPPCR_HAVE_CUDA OFF)
if(NOT DEEPPCR_CUDA)
    return()
endif()
if(DEEPPCR_CUDA STREQUAL "AUTO" AND NOT DEEPPCR_C_LIBRARY AND NOT DEEPPCR_TORCH_HAS_CUDA)
    return()
endif()
include(CheckLanguage)
check_language(CUDA)
set(missing "")
if(NOT CMAKE_CUDA_COMPILER)
    set(missing "there is no CUDA compiler that works")
else()
    # Asked before CMake tries the architectures on it, which an older one would not survive.
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc)
    string(REGEX MATCH "release ([0-9.]+)" nvcc "${nvcc}")
    if(NOT nvcc OR CMAKE_MATCH_1 VERSION_LESS 12.8)
        set(missing "${CMAKE_CUDA_COMPILER} is not nvcc 12.8 or newer, the first to know sm_100 and sm_120")
    endif()
endif()
if(missing)
    if(NOT DEEPPCR_CUDA STREQUAL "AUTO")
        message(FATAL_ERROR "DEEPPCR_CUDA is ${DEEPPCR_CUDA}, but ${missing}")
    endif()
    message(STATUS "SKIPPED CUDA: ${missing}")
    return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120) # the last one as PTX, too
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
set(DEEPPCR_HAVE_CUDA ON)

# -Wpedantic and -Wconversion would find what nvcc generates; tests/cuda_on_host compiles the sources with them.
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/pcr/cuda/*.cu csrc/ops/cuda/*.cu)
add_library(deeppcr_cuda_kernels OBJECT ${cuda_sources})
target_include_directories(deeppcr_cuda_kernels PRIVATE csrc csrc/pcr)
# No contraction but where a kernel says so: two kernels that do the same must have the same bits.
target_compile_options(deeppcr_cuda_kernels PRIVATE --fmad=false -Xcompiler=-Wall,-Wextra
    -Xcompiler=-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=)
