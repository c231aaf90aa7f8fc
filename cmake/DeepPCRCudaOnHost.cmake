# CUDA kernels as C++ on the calling thread: the simulator of tests/cuda_on_host and what is compiled for it.
#
# The compiler is told to instrument for a ThreadSanitizer whose functions are the simulator's own, so a build
# that links the real one cannot have it.  No part of it needs the C++ library: the programs link as C ones.
enable_language(CXX)

set(cuda_on_host ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_on_host)
add_library(deeppcr_cuda_on_host_flags INTERFACE)
target_include_directories(deeppcr_cuda_on_host_flags INTERFACE ${cuda_on_host}/include ${cuda_on_host})
target_compile_options(deeppcr_cuda_on_host_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-O2 -fno-exceptions -fno-rtti -fno-threadsafe-statics>)

add_library(deeppcr_simulator OBJECT
    ${cuda_on_host}/scheduler.cpp ${cuda_on_host}/memory.cpp ${cuda_on_host}/runtime.cpp)
target_link_libraries(deeppcr_simulator PRIVATE deeppcr_cuda_on_host_flags deeppcr_flags)

# Kernels: .cu files that g++ takes for C++.
function(deeppcr_compile_for_host target)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
    target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANGUAGE:CXX>:-x c++ -fsanitize=thread --param=tsan-instrument-func-entry-exit=0>)
    target_link_libraries(${target} PRIVATE deeppcr_cuda_on_host_flags deeppcr_flags)
endfunction()

add_executable(test_simulator ${cuda_on_host}/test_simulator.cu tests/c/support/check.c)
deeppcr_compile_for_host(test_simulator ${cuda_on_host}/test_simulator.cu)
target_include_directories(test_simulator PRIVATE tests/c)
target_link_libraries(test_simulator PRIVATE deeppcr_simulator m)
set_target_properties(test_simulator PROPERTIES LINKER_LANGUAGE C)
add_test(NAME test_simulator COMMAND test_simulator)

# The CUDA device of csrc/pcr/cuda, and the recurrence's conformance suite with it as one more backend.  A
# simulated access costs some 20 ns, so the tables are the thinned ones.
file(GLOB kernels CONFIGURE_DEPENDS csrc/pcr/cuda/*.cu)
add_library(deeppcr_cuda_kernels_on_host OBJECT ${kernels})
deeppcr_compile_for_host(deeppcr_cuda_kernels_on_host ${kernels})

add_library(deeppcr_test_support_cuda OBJECT ${support})
target_compile_definitions(deeppcr_test_support_cuda PUBLIC DPCR_TEST_REDUCED DPCR_TEST_CUDA_ON_HOST)
target_include_directories(deeppcr_test_support_cuda PUBLIC tests/c ${cuda_on_host})
target_link_libraries(deeppcr_test_support_cuda PUBLIC deeppcr_flags deeppcr_static Threads::Threads)
file(GLOB conformance CONFIGURE_DEPENDS tests/c/test_recurrence*.c)
foreach(test IN LISTS conformance)
    cmake_path(GET test STEM name)
    add_executable(${name}_cuda_on_host ${test})
    target_link_libraries(${name}_cuda_on_host PRIVATE
        deeppcr_cuda_kernels_on_host deeppcr_simulator deeppcr_test_support_cuda m)
    set_target_properties(${name}_cuda_on_host PROPERTIES LINKER_LANGUAGE C)
    add_test(NAME ${name}_cuda_on_host COMMAND ${name}_cuda_on_host)
endforeach()
