# The target torch_stable: what a library needs to use LibTorch's stable ABI, which is PyTorch's headers and
# nothing else of it.  One binary then serves every torch from 2.10 on, CPU and CUDA builds alike.
#
# Not find_package(Torch): that links torch's own libraries and, for CUDA builds of torch, looks for a CUDA
# toolkit.  Instead an empty library of the same name gives the entry libtorch_cpu.so in DT_NEEDED, without
# which the loader would not look for the symbols there; "import torch" has loaded the real one by then.
# torch_cuda_stub is the same for libtorch_cuda.so.
set(DEEPPCR_TORCH_DIR "" CACHE PATH "The installed torch package, the directory that holds include/ (empty: ask Python)")
find_package(Python REQUIRED COMPONENTS Interpreter)

# Asks the build's interpreter where torch is, without importing it; extra arguments go to `cmake -E env`.
function(deeppcr_ask_python result)
    set(question "import importlib.util as u; s = u.find_spec('torch'); print(*s.submodule_search_locations if s else '')")
    execute_process(
        COMMAND ${CMAKE_COMMAND} -E env ${ARGN} ${Python_EXECUTABLE} -c "${question}"
        WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR} # python -c looks there first
        OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    set(${result} "${answer}" PARENT_SCOPE)
endfunction()

set(torch_dir "${DEEPPCR_TORCH_DIR}")
if(NOT torch_dir)
    deeppcr_ask_python(torch_dir)
endif()
if(NOT torch_dir) # pip's build isolation consists of these two variables; behind them is the user's environment
    deeppcr_ask_python(torch_dir --unset=PYTHONPATH --unset=PYTHONNOUSERSITE)
endif()
if(NOT torch_dir)
    message(FATAL_ERROR
        "PyTorch was not found: ${Python_EXECUTABLE} cannot import torch.\n"
        "Install PyTorch 2.10 or newer into the environment first, then build again.  Where the build runs in "
        "an environment of its own (uv, python -m build), use --no-build-isolation (--no-isolation), or say where "
        "torch is: -C cmake.define.DEEPPCR_TORCH_DIR=/path/to/site-packages/torch.\n"
        "-C cmake.define.DEEPPCR_PYTHON=OFF installs the package without its native library.")
endif()

set(torch_version "none")
if(EXISTS ${torch_dir}/include/torch/headeronly/version.h)
    file(STRINGS ${torch_dir}/include/torch/headeronly/version.h line REGEX "\"[0-9]+\\.[0-9]+\\.[0-9]+\"")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" torch_version "${line}")
endif()
if(NOT torch_version VERSION_GREATER_EQUAL 2.10 OR NOT EXISTS ${torch_dir}/include/torch/csrc/stable/library.h)
    unset(DEEPPCR_TORCH_DIR CACHE) # a wrong answer is not remembered
    message(FATAL_ERROR "PyTorch 2.10 or newer is needed, with its include/ folder; ${torch_dir} holds ${torch_version}.")
endif()
message(STATUS "PyTorch ${torch_version}: ${torch_dir}")

# What CUDA builds of torch have, for AUTO in DeepPCRCuda.cmake.
set(DEEPPCR_TORCH_HAS_CUDA OFF)
if(EXISTS ${torch_dir}/lib/libtorch_cuda.so)
    set(DEEPPCR_TORCH_HAS_CUDA ON)
endif()

file(CONFIGURE OUTPUT torch_stub/stub.c CONTENT "typedef int dpcr_empty; /* stands in for torch's libraries */\n")
foreach(library torch_cpu torch_cuda)
    add_library(${library}_stub SHARED EXCLUDE_FROM_ALL ${CMAKE_CURRENT_BINARY_DIR}/torch_stub/stub.c)
    set_target_properties(${library}_stub PROPERTIES OUTPUT_NAME ${library}
        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/torch_stub)
endforeach()

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${torch_dir}/include)
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000ULL)
target_compile_options(torch_stable INTERFACE -fmacro-prefix-map=${torch_dir}/include/=)
target_link_options(torch_stable INTERFACE LINKER:--no-as-needed)
target_link_libraries(torch_stable INTERFACE torch_cpu_stub)
