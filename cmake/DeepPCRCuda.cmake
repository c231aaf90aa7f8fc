# libdeeppcr_cuda: the CUDA device, beside libdeeppcr.  The CUDA runtime is linked statically, so the library
# loads without a driver and ties nobody to a toolkit.
if(NOT DEEPPCR_C_LIBRARY OR NOT DEEPPCR_CUDA)
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
    message(STATUS "SKIPPED libdeeppcr_cuda: ${missing}")
    return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120) # the last one as PTX, too
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)

# -Wpedantic and -Wconversion would find what nvcc generates; tests/cuda_on_host compiles the sources with them.
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/pcr/cuda/*.cu csrc/ops/cuda/*.cu)
add_library(deeppcr_cuda SHARED ${cuda_sources})
target_include_directories(deeppcr_cuda PRIVATE csrc csrc/pcr
    INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_options(deeppcr_cuda PRIVATE -Xcompiler=-Wall,-Wextra
    -Xcompiler=-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=)
# The shared one: errors are told in its thread-local, of which there must not be two.
target_link_libraries(deeppcr_cuda PUBLIC deeppcr_shared)
set_target_properties(deeppcr_cuda PROPERTIES EXPORT_NAME cuda INSTALL_RPATH $ORIGIN
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
install(TARGETS deeppcr_cuda EXPORT deeppcrTargets)
install(FILES csrc/pcr/cuda/cuda.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/deeppcr)
